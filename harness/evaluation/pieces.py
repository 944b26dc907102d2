"""A Markdown text as pieces: what stays verbatim or goes whole, and sentences that may go one by one.

The pieces follow one another without a gap: joined, they are the text. Structure comes from markdown-it-py,
so a code fence, a table or a quotation is one piece however long it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token


class Rank(IntEnum):
    """What is kept first: headings say where one is, structure cannot be shortened, prose can."""

    HEADING = 0
    STRUCTURE = 1
    PROSE = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text. `section` counts headings; `edge` is the first or last sentence of a section.

    Pieces of one `block` stand in one paragraph, item or the like. One that `leans` would be something else
    without the piece before it, as a list's line that is indented, or the `---` under a heading.
    """

    text: str
    rank: Rank
    section: int
    edge: bool = False
    block: int = 0
    leans: bool = False


_PARSER: Final = MarkdownIt("commonmark").enable("table")
_WHOLE: Final = frozenset({"fence", "code_block", "table_open", "blockquote_open", "html_block"})
_LISTS: Final = frozenset({"bullet_list_open", "ordered_list_open"})
# A sentence ends at a full stop and a blank, or at a full-width one, which no blank follows. The Arabic
# question mark and the Urdu full stop are ends as well.
_SENTENCE_END: Final = re.compile(r"(?:[.!?؟۔…]+[\"'”’»)\]]*\s+|[。！？]+[」』”’）]*\s*|\n)")  # noqa: RUF001
_HARD_END: Final = re.compile(r"(?:[.!?؟۔…][\"'”’»)\]]*|[。！？][」』”’）]*|\\)$")  # noqa: RUF001
"""What a line has at its end that ends a sentence, or is broken by a backslash."""
_FIRST_WORD: Final = re.compile(r"\s*(\S+)")
_LEAST_WIDTH: Final = 60
"""Paragraphs of shorter lines are verses, addresses or the like, and not wrapped."""
_LONGEST_WRAPPED: Final = 600
"""Lines of more characters are no one sentence: a log has lines of one length, too."""
_CITED: Final = re.compile(r"\[\^?[\w-]{1,20}\](?!\()")
"""A mark as `[3]` or `[^note]`: a sentence that has one cites a source."""
_LEANS: Final = re.compile(r"[ \t]{2}|[ \t]*(?:[-=+*>#|`~<]|\d+[.)])")
"""What begins a line of a paragraph, and alone would begin code, a list or the like."""
_SIGN: Final = re.compile(r"(?:[-+*]|#{1,6}|\d+[.)])[ \t]|>|<|`{3}|~{3}|-{3}|={3}")
"""The same inside of a line, where emphasis or a piece of code begins a sentence."""
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
"""A line as Markdown ends it. Python's `splitlines` ends one at form feeds and U+2028 as well."""


def pieces_of(text: str) -> list[Piece]:
    """The pieces of a Markdown text, in order; joined, they are the text."""
    lines = _LINE.findall(text)
    pieces = list[Piece]()
    section = end = 0
    for token, block_end in _blocks(text):
        start, _ = token.map or (0, 0)
        if start < end:
            continue
        # What stands between blocks (blank lines, definitions of links) belongs to what follows it.
        block = "".join(lines[end:block_end])
        end = block_end
        section += token.type == "heading_open"
        pieces += (replace(one, block=end) for one in _pieces_of_block(token, block, section))
    rest = "".join(lines[end:])
    if rest:
        pieces.append(Piece(rest, Rank.PROSE, section, block=len(lines)))
    return list(_with_edges(pieces))


def _blocks(text: str) -> Iterator[tuple[Token, int]]:
    """Each block that is treated as one, with the number of the line after it.

    A list is its items; everything else is its outermost token.
    """
    inside_list = 0
    for token in _PARSER.parse(text):
        if token.type in _LISTS or token.type.replace("_close", "_open") in _LISTS:
            inside_list += token.nesting
            continue
        if token.map is None or token.nesting < 0:
            continue
        outermost = token.level == 0
        item = token.type == "list_item_open" and inside_list == 1
        if outermost or item:
            yield token, token.map[1]


def _pieces_of_block(token: Token, block: str, section: int) -> Iterator[Piece]:
    if token.type in ("heading_open", "hr"):
        yield Piece(block, Rank.HEADING, section)
    elif token.type in _WHOLE:
        yield Piece(block, Rank.STRUCTURE, section)
    elif token.type == "list_item_open":
        yield from _pieces_of_item(block, section)
    else:
        before = ""
        for sentence in _sentences(block):
            cited = _CITED.search(sentence) is not None
            begins = _LEANS if before.endswith(("\r", "\n")) else _SIGN
            leans = bool(before) and begins.match(sentence) is not None
            yield Piece(sentence, Rank.STRUCTURE if cited else Rank.PROSE, section, leans=leans)
            before = sentence


def _pieces_of_item(block: str, section: int) -> Iterator[Piece]:
    """The head of an item is its first line; an item that has structure inside stays whole."""
    start = len(block) - len(block.lstrip("\r\n"))
    head_end = block.find("\n", start) + 1 or len(block)
    nested = _PARSER.parse(_unindented(block[head_end:]))
    if any(token.type in _WHOLE for token in nested):
        yield Piece(block, Rank.STRUCTURE, section)
        return
    yield Piece(block[:head_end], Rank.STRUCTURE, section)
    for line in _LINE.findall(block[head_end:]):
        yield Piece(line, Rank.PROSE, section, leans=True)


def _unindented(text: str) -> str:
    return "".join(line.lstrip(" \t") for line in _LINE.findall(text))


def _sentences(block: str) -> Iterator[str]:
    """The sentences of a paragraph, each with the blanks after it; joined, they are the paragraph.

    The end of a line ends a sentence as well, unless the paragraph is wrapped there.
    """
    width = max((len(line.rstrip()) for line in _LINE.findall(block)), default=0)
    ends = [0, *(found.end() for found in _SENTENCE_END.finditer(block)), len(block)]
    whole = ""
    for start, end in pairwise(ends):
        whole += block[start:end]
        wrapped = len(whole) < _LONGEST_WRAPPED and _is_wrapped(block, end, width)
        if whole.strip() and not wrapped:
            yield whole
            whole = ""
    if whole:
        yield whole


def _is_wrapped(block: str, end: int, width: int) -> bool:
    """Whether a line of the block ends here for its length alone, in a paragraph of this width."""
    if width < _LEAST_WIDTH or block[end - 1] != "\n":
        return False
    line = block[block.rfind("\n", 0, end - 1) + 1 : end]
    said, word = line.rstrip(), _FIRST_WORD.match(block, end)
    # Two blanks at the end of a line break it.
    if word is None or "  " in line[len(said) :] or _HARD_END.search(said):
        return False
    return word[1][0].islower() or len(said) + 1 + len(word[1]) > width


def _with_edges(pieces: Sequence[Piece]) -> Iterator[Piece]:
    prose = [(one.section, number) for number, one in enumerate(pieces) if one.rank is Rank.PROSE]
    last_ones, first_ones = dict(prose), dict(reversed(prose))
    edges = {*first_ones.values(), *last_ones.values()}
    for number, piece in enumerate(pieces):
        yield replace(piece, edge=number in edges)
