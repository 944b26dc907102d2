"""What a loop of evaluate and revise is worth, with models that do the work: `python bench/refine.py`.

The demo's trained producer writes reports from fact sheets, its trained evaluator scores them, and the true
score of each report is counted from its facts. Measured are the mean true score after one, two and three
rounds; seconds and loads per task in a budget for one of the two models, with `run_many` and task after
task; and how far the evaluator agrees with the truth at each quantization. The last line of the output is
one JSON object.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from _common import REPOSITORY, at_least, background_shim, end_on_signals, last_line, say, timed

from harness import Judge, Refine, RefineRecord, run_many
from harness.demo.reports import (
    RUBRIC,
    FactSheet,
    judge_prompt,
    producer_prompt,
    sheets,
    true_composite,
)
from harness.demo.reports.trained import QUANTIZATIONS, trained_model
from harness.refine.rendering import plot
from shim import Shim
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog
from tools.training.lessons import DRAFT, REVISION, Noise, noisy
from traces import RunLine, RunTrace, read_runs

THRESHOLD = 9.0
"""What passes; also the floor of a dimension, so that one missing fact of six is revised."""
SEED = 100
"""Of the fact sheets; the lessons were made from another seed."""
NOISES = (DRAFT, REVISION, Noise(0.4, 0.35, 0.2))
FOLDER = REPOSITORY / "models" / "reports"
OPTIONS = {"max_tokens": 96, "temperature": 1.0, "seed": 7}
ENTRY = {"context": 4096, "slots": 4, "threads": 1}
WARM_AT_ONCE = 4


def models(pairs: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """Entries of the configuration by name, from a model's name and quantization."""
    return {
        name: {"path": str(trained_model(which, kind, FOLDER)), **ENTRY}
        for name, (which, kind) in pairs.items()
    }


PAIR = {"producer": ("producer", "Q4_K_M"), "evaluator": ("evaluator", "Q8_0")}


def config(entries: Mapping[str, Any], limit: int | str = "1GiB") -> dict[str, Any]:
    """A configuration under a limit."""
    budget = {"device": "host", "limit": limit, "reserve": 0}
    return {"budget": budget, "models": dict(entries), "kv": {"enabled": False}}


def limit_for_one() -> int:
    """Bytes for the larger one of the pair."""
    catalog = build_catalog(Config.from_mapping(config(models(PAIR))))
    prepared = catalog.prepared.values()
    needed = [dict(one.placements[0].bookings)[catalog.device.name] for one in prepared]
    return int(max(needed) * 1.05)


def loop(shim: Shim) -> Refine:
    """The loop that is measured."""
    return Refine(
        "producer",
        "evaluator",
        RUBRIC,
        shim=shim,
        threshold=THRESHOLD,
        floor=THRESHOLD,
        prompt=producer_prompt,
        options=OPTIONS,
        judge_prompt=judge_prompt,
    )


# What rounds are worth


def draw(records: Sequence[RefineRecord], file: Path) -> None:
    """Keep the plot of the run with the most rounds and the largest gain."""

    def gain(record: RefineRecord) -> tuple[int, float]:
        judged = [one.evaluation.composite for one in record.rounds if one.evaluation is not None]
        return len(judged), record.composite - judged[0]

    file.write_text(plot(max(records, key=gain)), "utf-8")


def quality(chosen: Sequence[FactSheet], picture: Path | None) -> dict[str, float]:
    """Mean true scores after each round, and how often a later round was not the better one."""
    by_task = {sheet.task: sheet for sheet in chosen}
    with background_shim(config(models(PAIR))) as shim:
        records = run_many(loop(shim), list(by_task), at_once=WARM_AT_ONCE)
    if picture is not None:
        draw(records, picture)
    means = {
        f"true_round_{n}": statistics.fmean(
            true_composite(by_task[r.task], replace(r, rounds=r.rounds[:n]).answer) for r in records
        )
        for n in (1, 2, 3)
    }
    several = [record for record in records if len(record.rounds) > 1]
    not_last = sum(record.best is not record.rounds[-1] for record in several)
    passed = [record for record in records if record.passed]
    wrongly = sum(true_composite(by_task[r.task], r.answer) < THRESHOLD for r in passed)
    for name, value in means.items():
        say(f"{name}: {value:.2f}")
    say(f"{len(passed)} of {len(records)} passed, {wrongly} of them with a true score under it")
    return {
        **means,
        "best_not_last": not_last / max(1, len(several)),
        "rounds": statistics.fmean(len(record.rounds) for record in records),
        "passed": len(passed) / len(records),
        "passed_wrongly": wrongly / max(1, len(passed)),
    }


# What grouping is worth


def counted(work: Callable[[], object]) -> tuple[float, int]:
    """Seconds of some work, and the loads that its run's trace tells of."""
    with tempfile.TemporaryDirectory(prefix="kw-bench-") as folder:
        with RunTrace(directory=Path(folder), service="refine") as run:
            seconds = timed(work)
        lines = [one for one in read_runs(run.runs_path) if isinstance(one, RunLine)]
    return seconds, lines[0].loads


def one_by_one(made: Refine, tasks: Sequence[str]) -> list[RefineRecord]:
    """Each task to its end before the next one begins."""
    return [made.run(task) for task in tasks]


WAYS: dict[str, Callable[[Refine, Sequence[str]], list[RefineRecord]]] = {
    "grouped": run_many,
    "one_by_one": one_by_one,
}


def grouping(chosen: Sequence[FactSheet]) -> dict[str, float]:
    """Seconds and loads a task in a budget for one model: grouped, and task after task."""
    tasks, limit, figures = [sheet.task for sheet in chosen], limit_for_one(), dict[str, float]()
    for name, way in WAYS.items():
        with background_shim(config(models(PAIR), limit)) as shim:
            seconds, loads = counted(partial(way, loop(shim), tasks))
        say(f"{name}: {seconds:.1f} s, {loads} loads, {len(tasks)} tasks")
        figures |= {
            f"{name}_seconds_per_task": seconds / len(tasks),
            f"{name}_loads_per_task": loads / len(tasks),
        }
    return figures


# How far the evaluator is right


def agreement(chosen: Sequence[FactSheet]) -> dict[str, float]:
    """Spearman, mean absolute error and wrong passes of the evaluator, at each quantization."""
    rng = random.Random(SEED)
    reports = [sheet.report(noisy(rng, sheet, rng.choice(NOISES))) for sheet in chosen]
    truth = [true_composite(sheet, text) for sheet, text in zip(chosen, reports, strict=True)]
    figures: dict[str, float] = {}
    for kind in QUANTIZATIONS:
        with background_shim(config(models({"evaluator": ("evaluator", kind)}))) as shim:
            judge = Judge(shim, RUBRIC, "evaluator", prompt=judge_prompt, overridden=["evaluator"])
            work = [(sheet.task, text) for sheet, text in zip(chosen, reports, strict=True)]
            given = [one.composite for one in judge.evaluate_many(work, WARM_AT_ONCE)]
        wrong = sum(g >= THRESHOLD > t for g, t in zip(given, truth, strict=True))
        row = {
            "spearman": spearman(given, truth),
            "error": statistics.fmean(abs(g - t) for g, t in zip(given, truth, strict=True)),
            "wrong_passes": wrong / len(truth),
        }
        say(f"{kind:<7}" + "".join(f"  {name} {value:.3f}" for name, value in row.items()))
        figures |= {f"{kind.lower()}_{name}": value for name, value in row.items()}
    return figures


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, with mean ranks for equal values; 0 where one side does not vary."""
    ranks = np.stack([mean_ranks(one), mean_ranks(other)])
    if (ranks.std(axis=1) == 0).any():
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])


def mean_ranks(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The rank of each value; equal ones share the mean of theirs."""
    _, places, counts = np.unique(np.round(values, 6), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: np.ndarray[Any, np.dtype[np.float64]] = ends - (counts - 1) / 2
    return means[places]


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--tasks",
        type=at_least(1),
        default=200,
        help="for the rounds and the judges' agreement (200)",
    )
    parser.add_argument(
        "--grouped-tasks",
        type=at_least(1),
        default=16,
        help="for loads with and without grouping (16)",
    )
    parser.add_argument("--picture", type=Path, help="gets the plot of one run, as SVG")
    arguments = parser.parse_args()
    end_on_signals()
    chosen = list(islice(sheets(SEED), arguments.tasks))
    figures = agreement(chosen)
    figures |= quality(chosen, arguments.picture)
    figures |= grouping(chosen[: arguments.grouped_tasks])
    last_line(figures)


if __name__ == "__main__":
    main()
