"""Compression of payloads: properties on drawn Markdown, real documents, and other languages."""

from __future__ import annotations

import inspect
import json
import statistics
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from harness import Compressor
from harness.evaluation.pieces import Rank, pieces_of
from shim import InvalidRequest
from tests.harness.told import ToldShim, in_turn

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md"), ROOT / "README.md"])

CHINESE = "模型的内存预算很重要。评估模型不应该被驱逐。天气很好。" * 40
GERMAN = (
    "Der Haushalt zählt Bytes, z. B. die der Gewichte. Das Wetter ist schön! Wer fährt heim? " * 30
)
ARABIC = "ميزانية الذاكرة مهمة جدا. هل يبقى النموذج في الذاكرة؟ الطقس جميل اليوم. " * 40

WORDS = st.sampled_from(["budget", "bytes", "Gewicht", "预算", "ميزانية", "a", "evict", "x" * 50])
SENTENCE = st.lists(WORDS, min_size=1, max_size=12).map(lambda words: " ".join(words) + ". ")
PARAGRAPH = st.lists(SENTENCE, min_size=1, max_size=8).map("".join)
BLOCK = st.one_of(
    PARAGRAPH,
    PARAGRAPH.map(lambda text: f"## {text.strip()[:40]}"),
    PARAGRAPH.map(lambda text: f"```python\n{text}\n```"),
    PARAGRAPH.map(lambda text: f"~~~\n{text}\n\n```\n~~~"),
    PARAGRAPH.map(lambda text: f"> {text}"),
    st.lists(SENTENCE, min_size=1, max_size=4).map(lambda rows: "\n".join(f"- {r}" for r in rows)),
    st.just("| a | b |\n|---|---|\n| 1 | 2 |"),
    st.just("- head\n\n  ```\n  code\n  ```"),
    st.just("```\nnever closed"),
    PARAGRAPH.map(lambda text: f"1. {text.replace('. ', '.' + chr(10))}"),
    PARAGRAPH.map(lambda text: f"- a\n  ---\n  {text}"),
    PARAGRAPH.map(lambda text: f"    {text}"),
    st.sampled_from(["---", "===", "<div>"]),
)
GAP = st.sampled_from(["\n\n", "\n\n", "\n", "\r\n"])
MARKDOWN = st.lists(st.tuples(BLOCK, GAP).map("".join), min_size=1, max_size=12).map("".join)


def fences(text: str) -> list[str]:
    """The code of every fence."""
    return [token.content for token in parsed(text) if token.type == "fence"]


def headings(text: str) -> list[str]:
    """The text of every heading."""
    return [after.content for at, after in pairwise(parsed(text)) if at.type == "heading_open"]


def parsed(text: str) -> list[Token]:
    """The structure of a text."""
    return MarkdownIt("commonmark").enable("table").parse(text)


@settings(max_examples=150, deadline=None)
@given(MARKDOWN, st.integers(200, 900), st.text(max_size=30))
def test_what_is_cut_is_small_enough_marked_and_otherwise_verbatim(
    text: str, limit: int, about: str
) -> None:
    """Pieces are the text; the result is idempotent, never longer, and no fence or heading is made."""
    compressor = Compressor(limit)
    assert "".join(piece.text for piece in pieces_of(text)) == text
    result = compressor.compress(text, about)
    assert len(result.text) <= max(limit, 0)
    assert len(result.text) <= len(text)
    assert compressor.compress(result.text, about).text == result.text
    if len(text) <= limit:
        assert (result.text, result.cut, result.gaps) == (text, 0, 0)
        return
    assert result.text.count("characters cut …]") == result.gaps > 0
    left = fences(text)
    assert all(code in left for code in fences(result.text))
    assert set(headings(result.text)) <= set(headings(text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
@pytest.mark.parametrize("limit", [400, 6000])
def test_real_documents_keep_their_structure(document: Path, limit: int) -> None:
    """Headings stay, fences and tables are whole or gone."""
    text = document.read_text("utf-8")
    result = Compressor(limit).compress(text, "Which engine is evicted when bytes are missing?")
    assert len(result.text) <= limit
    whole = fences(text)
    assert all(code in whole for code in fences(result.text))
    pieces = [piece.text for piece in pieces_of(text)]
    heads = [p.text for p in pieces_of(text) if p.rank is Rank.HEADING]
    if limit == 6000:
        assert all(head.strip() in result.text for head in heads)
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("text", "about", "kept"),
    [
        (CHINESE, "内存预算", "模型的内存预算很重要。"),
        (GERMAN, "Bytes der Gewichte", "die der Gewichte."),
        (ARABIC, "ميزانية الذاكرة", "ميزانية الذاكرة مهمة جدا."),
    ],
)
def test_other_languages_are_cut_between_sentences(text: str, about: str, kept: str) -> None:
    """Also without blanks between words and with another question mark; what was asked for stays."""
    result = Compressor(300).compress(text, about)
    assert len(result.text) <= 300
    assert kept in result.text
    weather = [w for w in ("天气很好。", "Das Wetter ist schön!", "الطقس جميل اليوم.") if w in text]
    assert result.text.count(kept) >= sum(result.text.count(w) for w in weather)


def test_plain_python_documentation_is_cut_too() -> None:
    """Text without Markdown is prose."""
    text = "\n\n".join(inspect.getdoc(module) or "" for module in (json, statistics, inspect)) * 3
    result = Compressor(800).compress(text, "How is a median of grouped data computed?")
    assert len(result.text) <= 800
    assert "median" in result.text


def test_a_measure_in_tokens_bounds_tokens() -> None:
    """The evaluator may count otherwise than in characters."""
    text = "The budget counts bytes. " * 200
    result = Compressor(200, measure=lambda part: len(part.split()) * 2).compress(text)
    assert 0 < len(result.text.split()) * 2 <= 200


def test_a_cited_passage_outlives_other_prose() -> None:
    """A sentence that cites a source, and a quotation, go only as a whole and last."""
    text = (
        "Filler goes here. " * 60
        + "\n\nThe limit is 6,000 [12]. More filler.\n\n> As they said.\n\n"
    )
    result = Compressor(300).compress(text + "Filler ends here. " * 60, "filler")
    assert "The limit is 6,000 [12]." in result.text
    assert "> As they said." in result.text


def test_bytes_that_hold_no_payload_are_refused_with_as_many_as_do() -> None:
    """The caller gave bytes: an error about characters would tell nothing to do."""
    shim = ToldShim({"judge": in_turn("x")})
    with pytest.raises(
        InvalidRequest, match=r"hold 199 tokens.*Give `kv_bytes` of 204,800 or more"
    ):
        Compressor.for_evaluator(shim, "judge", kv_bytes=200 * 1024 - 1)
    assert Compressor.for_evaluator(shim, "judge", kv_bytes=200 * 1024).limit == 200


def test_limits_and_texts_that_cannot_be_are_refused() -> None:
    """A limit that holds nothing; a text that would take seconds to parse."""
    with pytest.raises(InvalidRequest, match="200"):
        Compressor(10)
    with pytest.raises(InvalidRequest, match="too long"):
        Compressor().compress("x" * 4_000_001)
    assert Compressor().compress("").text == ""


WRAPPED = {
    "English": "The keeper knows what every model takes before it is loaded, and it\n"
    "evicts no more than it must.",
    "German": "Der Verwalter kennt von jedem Modell die Bytes, bevor geladen wird, und\n"
    "Engines im Gebrauch bleiben.",
}


@pytest.mark.parametrize("sentence", WRAPPED.values(), ids=WRAPPED)
def test_a_sentence_over_two_lines_stays_or_goes_whole(sentence: str) -> None:
    """Documents are wrapped at a width: half of a sentence says nothing, or something else."""
    text = "".join(
        f"{sentence}{filler}\n" for filler in ("One more here.", "And another.", "Last.")
    )
    found = Compressor(240).compress(text * 3, "evicts Engines")
    assert found.cut
    for half in sentence.split("\n"):
        assert found.text.count(half) == found.text.count(sentence) > 0


@pytest.mark.parametrize(
    "line", ["2026-11-01 12:00:{:02} the request of the client was answered in 12 ms", "Verse {}"]
)
def test_lines_of_a_log_or_a_poem_go_one_by_one(line: str) -> None:
    """Lines that no full stop ends are no one sentence, also where all are equally long."""
    text = "\n".join(line.format(n) for n in range(60))
    found = Compressor(max(200, len(text) // 2)).compress(text, "request verse")
    assert len(found.text) > len(text) // 8


@pytest.mark.parametrize(
    "text",
    [
        "这是一个句子。" * 70_000,
        f"{'word ' * 15}\nx{' ' * 150_000}end. A short tail\nand its next line.\n",
    ],
    ids=["no blanks", "many blanks"],
)
def test_the_pieces_of_a_long_text_take_time_for_each_of_its_characters_once(text: str) -> None:
    """With each sentence the rest of the text was read again, or each blank of a line: for minutes."""
    assert "".join(piece.text for piece in pieces_of(text)).startswith(text[:60])


@pytest.mark.parametrize("sign", ["\u2028", "\x0c", "\x0b", "\x85", "\x1e", "\r", "\r\n"])
def test_signs_that_end_no_line_of_markdown_do_not_shift_its_structure(sign: str) -> None:
    """A form feed or U+2028 above fences tore them: Python ends lines there, Markdown does not."""
    fences = "".join(
        f"```py\ncode {n}\n\n# no heading {n}\n```\n\nProse {n}. More.\n\n" for n in range(20)
    )
    found = Compressor(400).compress(f"Odd{sign}words{sign}here.\n\n{fences}", "prose")
    kept = [
        token.content
        for token in MarkdownIt("commonmark").parse(found.text)
        if token.type == "fence"
    ]
    assert kept
    assert all(content in fences and content.startswith("code") for content in kept)


def test_a_mark_makes_no_heading_of_a_sentence() -> None:
    """The mark of a cut list stood in the line of the sentence above; `===` below made both a heading."""
    prose = "Alpha one. Beta two is here and long enough. Gamma three."
    listed = "1. one\n2. two. Second sentence.\n\n   para in list"
    head = "Head\n==="
    text = "\n\n".join([prose, listed, head, prose, "- item", head, head, head])
    found = Compressor(200).compress(text, "alpha gamma")
    tokens = MarkdownIt("commonmark").parse(found.text)
    assert {b.content for a, b in pairwise(tokens) if a.type == "heading_open"} == {"Head"}


MADE_BY_A_CUT = ("heading_open", "code_block", "fence", "ordered_list_open")


@pytest.mark.parametrize(
    "text",
    [
        "1. {long}\nBudget bytes!\n===\n",
        "- a\n  {long}\n    budget.\n",
        "{long}\n    budget bytes.\n",
        "{x}. # Budget bytes.\n",
        "{x}. ```\nbudget bytes.\n",
        "{x}. 1. budget bytes.\n",
    ],
    ids=["underlined", "indented in an item", "indented", "heading's sign", "fence", "number"],
)
def test_a_line_goes_with_what_it_leans_on(text: str) -> None:
    """Alone it would be a heading or code, which the text does not have."""
    whole = text.format(long="Weather. " * 60 + "x" * 300, x="x" * 300)
    kinds = [
        {token.type for token in parsed(one) if token.type in MADE_BY_A_CUT}
        for one in (whole, Compressor(200).compress(whole, "budget bytes").text)
    ]
    assert kinds[1] <= kinds[0]
