"""A refined record as people read it: a table in 80 columns, a page, and a plot that stands alone."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

from rich.console import Console

from harness import Dimension, EvaluatorPool, Refine, RefineRecord, Roles, Rubric, WiggumLoop
from harness.refine.rendering import html, plot, table
from tests.harness.told import Answer, ToldShim, in_turn, scores

RUBRIC = Rubric([Dimension("facts", "Right."), Dimension("style", "Reads well.")])


def judged(*composites: float) -> Answer:
    """A judge that gives these composites in turn."""
    return in_turn(*(scores(facts=c, style=c) for c in composites))


def test_the_record_is_shown_as_table_and_page() -> None:
    """Every figure of a round is in both; what a model wrote is escaped, and the best round is marked."""
    shim = ToldShim({"writer": in_turn("<script>one</script>", "two"), "judge": judged(5, 8.5)})
    record = WiggumLoop("writer", EvaluatorPool(["judge"]), RUBRIC, shim=shim).run("Write.")
    page = html(record)
    for shown in (" ".join(_in_columns(record, 80).split()), page):
        assert "Best: 8.50 in round 2 of 2 (8 passes); the composite passed." in shown
        assert "facts" in shown
        assert "loads" in shown
        assert "spread" not in shown, "one judge agrees with itself"
    assert "<script>" not in page
    assert page.count("<circle") == 2
    assert page.count("<tr class='best'>") == page.count("<mark>best</mark>") == 1


def test_the_page_is_read_in_the_dark_and_its_plot_stands_alone() -> None:
    """Colours follow the reader's; the plot names its axes, its threshold and its points."""
    shim = ToldShim({"writer": in_turn("one", "two"), "judge": judged(5, 8.5)})
    record = WiggumLoop("writer", EvaluatorPool(["judge"]), RUBRIC, shim=shim).run("Write.")
    alone = plot(record)
    for shown in (html(record), alone):
        assert "prefers-color-scheme:dark" in shown
    texts = [one.text for one in _parsed(alone).iter() if one.tag.endswith("text")]
    assert {"10", "4", "round 1", "round 2", "8 passes", "5.00", "8.50"} <= set(texts)


def test_a_panels_table_has_its_spread_and_a_record_without_scores_is_shown() -> None:
    """What several judges differ by is in the table; a run that was killed before its first score, too."""
    shim = ToldShim({"writer": in_turn("one"), "judge": judged(9), "other": judged(8)})
    loop = Refine("writer", EvaluatorPool(["judge", "other"], "panel"), RUBRIC, shim=shim)
    record = loop.run("Write.")
    assert "spread" in _in_columns(record, 80)
    for rounds in ((), (replace(record.rounds[0], evaluation=None),)):
        begun = replace(record, rounds=rounds, stopped=None)
        assert "No round was judged; the run has not ended." in html(begun)
        assert _parsed(plot(begun)).tag.endswith("svg")


def test_what_a_model_wrote_is_neither_markup_nor_an_order_to_the_terminal(tmp_path: Path) -> None:
    """A note that quotes a judge is shown as it is, and half of a character keeps no page from its file."""
    quoted = "[/b] [red] \x1b[2J \u202e \ud800"
    told = json.dumps({n: {"reasons": quoted, "score": 5} for n in RUBRIC.names})
    shim = ToldShim({"writer": in_turn(f"{quoted} \x00"), "judge": in_turn(told)})
    record = Refine("writer", "judge", RUBRIC, shim=shim, max_rounds=1).run("Write.")
    record = replace(record, notes=(quoted,))
    for width in (40, 80):
        assert "[/b] [red] \ufffd[2J \ufffd \ufffd" in _in_columns(record, width)
    (tmp_path / "page.html").write_text(html(record), "utf-8")
    assert "[/b] [red]" in (tmp_path / "page.html").read_text("utf-8")


def _in_columns(record: RefineRecord, width: int) -> str:
    out = StringIO()
    Console(file=out, width=width).print(table(record))
    return out.getvalue()


def _parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def test_what_an_author_makes_says_what_it_is() -> None:
    """In a notebook each was an object at an address."""
    shim = ToldShim({"writer": in_turn("one"), "judge": judged(9)}, roles={"writer": "producer"})
    rubric = "Rubric(facts 0.5, style 0.5)"
    pool = "EvaluatorPool(['judge'], mode='hash')"
    assert repr(RUBRIC) == rubric
    assert (
        repr(Refine("writer", "judge", RUBRIC, shim=shim))
        == f"Refine('writer', {pool}, {rubric}, threshold=8, max_rounds=3)"
    )
    assert repr(Roles([shim.describe("writer")])) == "Roles(writer: producer)"
