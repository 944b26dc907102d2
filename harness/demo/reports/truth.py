"""The true scores of a report, counted from its fact sheet, and the rubric that asks a judge for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from harness.demo.reports.facts import FactSheet, statements
from harness.evaluation.rubric import HIGHEST, STEP, Dimension, Rubric, Score

RUBRIC: Final = Rubric(
    [
        Dimension("complete", "Every fact is in the report.", 0.4, {0: "none is", 10: "all are"}),
        Dimension("correct", "What it says is so.", 0.4, {0: "nothing is", 10: "everything is"}),
        Dimension("concise", "It says nothing twice.", 0.2, {10: "each sentence is new"}),
    ]
)

TrueScores = Mapping[str, float]


def true_scores(sheet: FactSheet, report: str) -> TrueScores:
    """Each dimension's score, 0 to 10 in half steps.

    `complete` is the share of facts of which the report has a sentence, right or wrong. `correct` is the
    share of its different statements that agree with the facts. `concise` is the share of its sentences
    that were not there before. A report without a sentence has 0 everywhere.
    """
    said = statements(report, sheet.name)
    if not said:
        return dict.fromkeys(RUBRIC.names, 0.0)
    distinct = set(said)
    keys = {one.key for one in said}
    return {
        "complete": _steps(sum(fact.key in keys for fact in sheet.facts), len(sheet.facts)),
        "correct": _steps(sum(one in sheet.facts for one in distinct), len(distinct)),
        "concise": _steps(len(distinct), len(said)),
    }


def true_composite(sheet: FactSheet, report: str) -> float:
    """The weighted mean of the true scores, as the rubric computes a judge's."""
    found = true_scores(sheet, report)
    return RUBRIC.composite({name: Score(score) for name, score in found.items()})


def _steps(part: int, whole: int) -> float:
    return round(HIGHEST * part / whole / STEP) * STEP
