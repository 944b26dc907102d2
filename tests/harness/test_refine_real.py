"""Refine on real llama-server: a score that is malformed cannot occur, even from random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import Compressor, Dimension, Refine, Rubric
from harness.evaluation.rubric import SCORES
from shim import InvalidRequest, Shim

RUBRIC = Rubric(
    [Dimension("facts", "Every fact is right.", 0.7), Dimension("style", "It reads well.", 0.3)]
)


@pytest.mark.real
def test_random_weights_give_scores_in_half_steps(tiny_models: dict[str, Path]) -> None:
    """The grammar of the schema holds the judge; the record says what each round cost."""
    models = {
        "writer": {"path": str(tiny_models["producer"]), "context": 1024, "threads": 1},
        "judge": {
            "path": str(tiny_models["evaluator"]),
            "context": 2048,
            "role": "evaluator",
            "threads": 1,
        },
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


@pytest.mark.real
def test_a_payload_follows_the_evaluators_own_tokens_and_their_kv_bytes(
    tiny_models: dict[str, Path],
) -> None:
    """Counted by the resident evaluator, estimated beside an absent one, which is not loaded for it."""
    entry = {"path": str(tiny_models["evaluator"]), "context": 2048}
    models = {"judge": entry, "far": {"url": "http://127.0.0.1:9/v1"}}
    config = {"budget": {"device": "host", "limit": "1GiB"}, "models": models}
    text = "# Budget\n\n" + "The ledger counts bytes, and the evaluator stays. " * 300
    with Shim(config, inline=True, share=True) as shim:
        per_token = shim.describe("judge").kv_bytes_per_token
        assert per_token
        compressor = Compressor.for_evaluator(shim, "judge", 250 * per_token)
        assert compressor.measure("abc" * 10) == 10
        assert len(compressor.compress(text, "bytes").text) <= 750
        assert [row["state"] for row in shim.status()["engines"]] == ["absent"]
        shim.load("judge")
        small = compressor.compress(text, "bytes")
        assert compressor.measure(small.text) == shim.count_tokens("judge", small.text) <= 250
        assert small.cut
        with pytest.raises(InvalidRequest, match="far is not known here"):
            Compressor.for_evaluator(shim, "far", 10_000)
