"""Evaluation payloads kept small: what matters for the rubric stays, what was cut is marked and counted.

Extractive: every kept sentence is verbatim. A sentence's score is the sum of the inverse frequencies of the
words of the rubric and the task that it has (as BM25 weighs a word), divided by the root of its length, and
half of its section's best; first and last sentences of sections get a bonus. Source of the idea: Luhn,
"The automatic creation of literature abstracts" (1958), and Edmundson (1969) for positions and cue words.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from harness.evaluation.pieces import Piece, Rank, pieces_of
from harness.given import a_count, a_function, a_text, an_object
from harness.unspaced import UNSPACED, pairs
from shim import InvalidRequest, OutsideError, Shim

LOG = logging.getLogger("keepwarm.harness")

LIMIT: Final = 6000
"""Payloads up to so many characters are left as they are."""
LEAST_LIMIT: Final = 200
LONGEST: Final = 4_000_000
"""Characters of the longest text that is read: its structure is parsed at about a megabyte a second."""

BYTES_PER_TOKEN: Final = 3
"""Where tokens cannot be counted: English has about four bytes a token, Chinese three."""

_EDGE_BONUS: Final = 0.5
_SECTION_SHARE: Final = 0.5
_MARK: Final = "[… {} characters cut …]"
_MARK_COST: Final = len(_MARK.format("9,999,999")) + 4
"""What a mark may take, with blank lines around it."""
_MARK_LEAST: Final = len(_MARK.format("10"))
_ENDS: Final = ("\n", "\r")
_WORD: Final = re.compile(r"[^\W_]+")
_STEM: Final = 6
"""Letters by which two forms of a word are taken for one: endings differ after them."""

Measure = Callable[[str], int]
"""The size of a text: characters by default, tokens where the evaluator counts them."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """A payload that is small enough. `cut` counts the characters that were left out, in `gaps` places."""

    text: str
    cut: int = 0
    gaps: int = 0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TokensOf:
    """Counts tokens as a model does, without ever loading it."""

    shim: Shim
    model: str

    def __call__(self, text: str) -> int:
        """The text's tokens: exact where the model is resident, else estimated from its bytes."""
        if is_resident(self.shim, self.model):
            try:
                return self.shim.count_tokens(self.model, text)
            except OutsideError:
                LOG.info("%s could not count tokens; they are estimated", self.model)
        return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)


def is_resident(shim: Shim, model: str) -> bool:
    """Whether a model's engine is loaded now."""
    rows = shim.status()["engines"]
    return any(model in row["models"] and row["state"] in ("idle", "leased") for row in rows)


@dataclass(frozen=True, slots=True)
class Compressor:
    """Cuts texts over a limit to what matters for a rubric and a task.

    Headings stay first, then code, tables, quotations, the first lines of list items and sentences that
    cite a source; each is kept verbatim, or goes as a whole where even these are over the limit. Then come
    sentences by their score. A text at or under the limit is untouched.

    Args:
        limit: the largest size that a payload may have, at least 200.
        measure: the size of a text. It must not shrink when text is added.

    Raises:
        InvalidRequest: the limit is too small.
    """

    limit: int = LIMIT
    measure: Measure = len

    @classmethod
    def for_evaluator(cls, shim: Shim, model: str, kv_bytes: int) -> Self:
        """Payloads whose KV cache takes at most so many bytes in this evaluator, as its slots hold them.

        The limit is in tokens, which the evaluator itself counts while it is resident. While it is not, a
        token is taken for every 3 bytes of the text, which is more than most texts have.

        Args:
            shim: has the evaluator.
            model: its name; a local model.
            kv_bytes: the bytes that a payload may take.

        Raises:
            InvalidRequest: the model has no KV cache that is known here, or the bytes hold too little.
        """
        an_object("`shim`", shim, Shim)
        a_count("`kv_bytes`", kv_bytes)
        per_token = shim.describe(a_text("`model`", model)).kv_bytes_per_token
        if not per_token:
            raise InvalidRequest(
                f"The KV cache of {model} is not known here, or it has none.",
                hint="Give `Compressor` a limit in characters.",
                model=model,
            )
        tokens = kv_bytes // per_token
        if tokens < LEAST_LIMIT:
            raise InvalidRequest(
                f"{kv_bytes:,} bytes of {model}'s KV cache hold {tokens} tokens; an evaluation needs at "
                f"least {LEAST_LIMIT}.",
                hint=f"Give `kv_bytes` of {LEAST_LIMIT * per_token:,} or more.",
                model=model,
            )
        return cls(tokens, TokensOf(shim, model))

    def __post_init__(self) -> None:
        a_function("`measure`", self.measure)
        a_count("The limit of a `Compressor`", self.limit, LEAST_LIMIT)

    def compress(self, text: str, about: str = "") -> Compressed:
        """The text, cut to the limit where it is longer.

        Args:
            text: Markdown, or plain prose.
            about: the words that matter: the rubric's and the task's.

        Raises:
            InvalidRequest: the text has more than 4,000,000 characters.
        """
        if len(a_text("The payload", text)) > LONGEST:
            raise InvalidRequest(
                f"A payload of {len(text):,} characters is too long to be cut; {LONGEST:,} are read.",
                hint="Evaluate it in parts.",
                characters=len(text),
                limit=LONGEST,
            )
        a_text("`about`", about)
        size = self.measure(text)
        if size <= self.limit:
            return Compressed(text)
        pieces = pieces_of(text)
        # Sizes in tokens are estimated from the text's own density, then made sure of by measuring.
        room = int(self.limit * len(text) / size)
        ranks = _order(pieces, words_of(about))
        while True:
            result = _joined(pieces, _chosen(pieces, ranks, room))
            if self.measure(result.text) <= self.limit or not room:
                return result
            room = room * 9 // 10 if room > _MARK_COST else 0


def words_of(text: str) -> frozenset[str]:
    """The words of a text, folded: stems of long ones, pairs of characters in unspaced scripts."""
    spaced = _WORD.findall(UNSPACED.sub(" ", text).casefold())
    words = {word[:_STEM] for word in spaced if len(word) > 2}
    return frozenset(words.union(*map(pairs, UNSPACED.findall(text))))


def _order(pieces: Sequence[Piece], wanted: frozenset[str]) -> list[int]:
    """The numbers of the pieces, the most wanted first."""
    terms = [wanted & words_of(piece.text) for piece in pieces]
    having = Counter(term for found in terms for term in found)
    idf = {term: math.log(1 + len(pieces) / count) for term, count in having.items()}
    hits = [
        sum(idf[term] for term in found) / math.sqrt(1 + len(piece.text) / 100)
        for piece, found in zip(pieces, terms, strict=True)
    ]
    best = dict[int, float]()
    for piece, hit in zip(pieces, hits, strict=True):
        best[piece.section] = max(best.get(piece.section, 0.0), hit)

    def score(number: int) -> float:
        piece = pieces[number]
        return hits[number] + _SECTION_SHARE * best[piece.section] + _EDGE_BONUS * piece.edge

    return sorted(range(len(pieces)), key=lambda n: (pieces[n].rank, -score(n), n))


def _chosen(pieces: Sequence[Piece], ranks: Sequence[int], room: int) -> list[bool]:
    """Which pieces stay: in order of rank, each that fits with the marks of the gaps."""
    kept = [False] * len(pieces)
    used, gaps = 0, 1
    for number in ranks:
        left = number > 0 and not kept[number - 1]
        right = number + 1 < len(pieces) and not kept[number + 1]
        more = left + right - 1
        cost = len(pieces[number].text)
        if used + cost + (gaps + more) * _MARK_COST <= room:
            kept[number] = True
            used, gaps = used + cost, gaps + more
    for number, piece in enumerate(pieces):
        kept[number] &= not piece.leans or kept[number - 1]
    _fill(pieces, kept)
    return kept


def _fill(pieces: Sequence[Piece], kept: list[bool]) -> None:
    """Keep what is shorter than the mark that would stand for it."""
    start = 0
    while start < len(kept):
        end = start
        while end < len(kept) and not kept[end]:
            end += 1
        if sum(len(piece.text) for piece in pieces[start:end]) <= _MARK_LEAST:
            kept[start:end] = [True] * (end - start)
        start = end + 1


def _joined(pieces: Sequence[Piece], kept: Sequence[bool]) -> Compressed:
    parts = list[str]()
    cut = gaps = gap = 0
    last: Piece | None = None
    for piece, stays in zip([*pieces, None], [*kept, True], strict=True):
        if not stays and piece is not None:
            gap += len(piece.text)
            continue
        if gap:
            parts.append(_mark(last, gap, piece))
            cut, gaps, gap = cut + gap, gaps + 1, 0
        if piece is not None:
            parts.append(piece.text)
            last = piece
    return Compressed("".join(parts), cut, gaps)


def _mark(before: Piece | None, gap: int, after: Piece | None) -> str:
    """The mark of a gap: in the line between sentences of a block, else a paragraph of its own.

    In a line above `---`, or in one with a list, it would make a heading, or an item, of what is none.
    """
    mark = _MARK.format(f"{gap:,}")
    start = "" if before is None else "\n" if before.text.endswith(_ENDS) else "\n\n"
    if after is None:
        return start + mark + "\n"
    if after.text.startswith(_ENDS):
        return start + mark + "\n"
    same = before is not None and before.block == after.block and after.rank is Rank.PROSE
    return mark + " " if same and start == "\n\n" else start + mark + "\n\n"
