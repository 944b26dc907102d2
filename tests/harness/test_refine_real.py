"""Refine on real llama-server: a score that is malformed cannot occur, even from random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Dimension, Refine, Rubric
from harness.evaluation.rubric import SCORES
from shim import Shim

RUBRIC = Rubric(
    [Dimension("facts", "Every fact is right.", 0.7), Dimension("style", "It reads well.", 0.3)]
)


@pytest.mark.real
def test_random_weights_give_scores_in_half_steps(tiny_models: dict[str, Path]) -> None:
    """The grammar of the schema holds the judge; the record says what each round cost."""
    models = {
        "writer": {"path": str(tiny_models["producer"]), "context": 1024},
        "judge": {"path": str(tiny_models["evaluator"]), "context": 2048, "role": "evaluator"},
    }
    with Shim({"budget": {"device": "host", "limit": "1GiB"}, "models": models}) as shim:
        options = {"max_tokens": 16, "temperature": 1.0, "seed": 7}
        loop = Refine(
            "writer", "judge", RUBRIC, shim=shim, max_rounds=2, threshold=10, options=options
        )
        record = loop.run("Write a line.")
    assert record.stopped in ("max_rounds", "repeated", "passed")
    for one in record.rounds:
        if one.evaluation is not None:
            assert set(one.evaluation.scores.values()) <= set(SCORES)
            assert one.evaluation.judgements[0].scores["facts"].reasons
    assert record.rounds[0].produced.cold
    assert record.best.evaluation is not None
