"""The demo's trained models on real llama-server: they read the task, and the loop runs on them."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest

from harness import Judge, Refine
from harness.demo.reports import (
    RUBRIC,
    judge_prompt,
    producer_prompt,
    sheets,
    statements,
    true_composite,
)
from harness.demo.reports.trained import WEIGHTS, trained_model
from shim import InvalidRequest, OutsideError, Shim
from tools.training.lessons import DRAFT, noisy


def test_the_models_of_the_repository_are_small_and_have_a_card() -> None:
    """12 MB at most, with data, steps, loss and licence beside them."""
    files = sorted(WEIGHTS.glob("*.gguf"))
    assert [file.name for file in files] == ["evaluator-F16.gguf", "producer-F16.gguf"]
    assert sum(file.stat().st_size for file in files) < 12_000_000
    card = (WEIGHTS / "README.md").read_text("utf-8").lower()
    assert all(word in card for word in ("data", "steps", "loss", "licence"))


def test_an_unknown_quantization_is_refused_by_name(tmp_path: Path) -> None:
    """The error lists those that can be made."""
    with pytest.raises(InvalidRequest, match="no quantization 'Q9_9'"):
        trained_model("producer", "Q9_9", tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """It was an `OSError` with the name of a hidden folder."""
    (tmp_path / "file").touch()
    with pytest.raises(OutsideError, match="cannot be made in"):
        trained_model("evaluator", "F16", tmp_path / "file")


@pytest.mark.real
def test_trained_models_write_judge_and_revise(tmp_path: Path) -> None:
    """Reports state facts; the judge tells worse reports from better ones; the loop ends with a record."""
    models = {
        "writer": {"path": str(trained_model("producer", "Q4_K_M", tmp_path)), "context": 1024},
        "judge": {"path": str(trained_model("evaluator", "Q8_0", tmp_path)), "context": 1024},
    }
    draw, chosen = random.Random(1), list(islice(sheets(9), 8))
    with Shim({"budget": {"device": "host", "limit": "1GiB"}, "models": models}) as shim:
        judge = Judge(shim, RUBRIC, "judge", prompt=judge_prompt)
        given, truth = list[float](), list[float]()
        for sheet in chosen:
            for text in (sheet.report(), sheet.report(noisy(draw, sheet, DRAFT)[:2])):
                given.append(judge.evaluate(sheet.task, text).composite)
                truth.append(true_composite(sheet, text))
        options = {"max_tokens": 96, "temperature": 1.0, "seed": 7}
        loop = Refine(
            "writer", "judge", RUBRIC, shim=shim, threshold=9, floor=9,
            prompt=producer_prompt, judge_prompt=judge_prompt, options=options,
        )  # fmt: skip
        record = loop.run(chosen[0].task)
    assert fmean(given[::2]) > fmean(given[1::2]) + 2
    assert fmean(abs(g - t) for g, t in zip(given, truth, strict=True)) < 2
    said = statements(record.rounds[0].produced.text, chosen[0].name)
    assert any(one.key for one in said)
    assert record.stopped is not None
