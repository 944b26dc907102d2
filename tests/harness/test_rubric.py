"""Rubrics: what may be judged, the shape of a judge's answer, and the composite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness import Dimension, Rubric, Score
from harness.evaluation.rubric import SCORES
from shim import EndpointError, InvalidRequest

FACTS = Dimension("facts", "Every fact is right.", 0.7, {0: "none is right", 10: "all are right"})
STYLE = Dimension("style", "It reads well.", 0.3)


def test_the_composite_is_the_weighted_mean() -> None:
    """We compute it; no judge is asked for it."""
    rubric = Rubric([FACTS, STYLE])
    assert rubric.composite({"facts": Score(10), "style": Score(5)}) == pytest.approx(8.5)
    equal = Rubric([Dimension("a", "A."), Dimension("b", "B.")])
    assert equal.composite({"a": Score(10), "b": Score(5)}) == 7.5


def test_the_schema_allows_half_steps_after_reasons_and_nothing_else() -> None:
    """A score that is malformed cannot occur where an engine holds to the schema."""
    schema = Rubric([FACTS, STYLE]).schema()
    assert list(schema["properties"]) == schema["required"] == ["facts", "style"]
    one = schema["properties"]["facts"]
    assert list(one["properties"]) == ["reasons", "score"]
    assert one["properties"]["score"]["enum"] == [*SCORES]
    assert len(SCORES) == 21
    assert not schema["additionalProperties"]


def test_the_evaluator_reads_anchors_in_order() -> None:
    """What a score looks like stands under its dimension."""
    described = Rubric([FACTS, STYLE]).described()
    assert "- facts: Every fact is right.\n  - 0: none is right\n  - 10: all are right" in described


@pytest.mark.parametrize(
    "made",
    [
        list,
        lambda: [FACTS, FACTS],
        lambda: [Dimension("two words", "No.")],
        lambda: [FACTS],
        lambda: [FACTS, Dimension("style", "x", 0.4)],
        lambda: [FACTS, Dimension("style", "x")],
        lambda: [Dimension("a", "x", float("nan"))],
        lambda: [Dimension("a", "x", 10**400)],
        lambda: [Dimension("a", "x", -1.0), Dimension("b", "x", 2.0)],
        lambda: [Dimension("a", "x", anchors={11: "more than all"})],
    ],
)
def test_a_rubric_that_cannot_be_is_refused(made: Callable[[], list[Dimension]]) -> None:
    """Names, weights and anchors are checked when it is made, not after a hundred answers."""
    with pytest.raises(InvalidRequest):
        Rubric(made())


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"facts": 3}, {"facts": {"score": True}}, {"facts": {"score": 3.25}}]
)
def test_a_judge_that_breaks_the_shape_is_the_endpoints_fault(answer: Any) -> None:
    """A remote endpoint may ignore the schema."""
    with pytest.raises(EndpointError, match="facts"):
        Rubric([Dimension("facts", "x")]).scores(answer)


@pytest.mark.parametrize("scores", [{}, {"style": Score(3)}, {"facts": 3}, None])
def test_a_composite_of_scores_that_are_not_all_there_is_refused(scores: Any) -> None:
    """It ended in a KeyError, or in a figure that is none."""
    with pytest.raises(InvalidRequest, match="cannot be"):
        Rubric([Dimension("facts", "x")]).composite(scores)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -1, 11, "5", None, True, 10**400])
def test_a_score_is_a_number_from_0_to_10(score: Any) -> None:
    """NaN made every composite NaN, which no threshold is above or below."""
    with pytest.raises(InvalidRequest):
        Score(score)
