"""A hundred answers and three judges, in a budget for one judge: how many loads it takes.

Answer by answer, every judge is loaded for every answer. `Judge.evaluate_many` asks judge by judge, and
each is loaded once. The hundred reports have mistakes that are counted exactly, so that the panel's medians
can be held against the truth. Run `python examples/judge_batch.py`.
"""

import random
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from harness import Evaluation, EvaluatorPool, Judge
from harness.demo.reports import RUBRIC, judge_prompt, sheets, true_composite
from harness.demo.reports.trained import trained_model
from shim import Shim
from shim.paths import cache_dir
from traces import RunLine, RunTrace, read_runs

FOLDER = cache_dir() / "examples"
KINDS = ("F16", "Q8_0", "Q5_K_M")
ANSWERS = 100
ONE_BY_ONE = 4
"""So many answers are judged the dear way, which is enough to see it."""


def configured() -> dict[str, Any]:
    """Three judges, and bytes for the largest one of them."""
    models = {
        f"judge-{kind}": {
            "path": str(trained_model("evaluator", kind, FOLDER)), "context": 4096, "slots": 4,
            "threads": 1,
        }
        for kind in KINDS
    }  # fmt: skip
    budget: dict[str, Any] = {"device": "host", "reserve": 0}
    with Shim({"budget": budget, "models": models}, inline=True, share=True) as shim:
        needed: Mapping[str, Any] = shim.what_if(list(models))["bytes"]
    limit = max(sum(int(amount) for amount in devices.values()) for devices in needed.values())
    return {"budget": {**budget, "limit": limit}, "models": models, "kv": {"enabled": False}}


class Cost(NamedTuple):
    """What judging one answer costs in the mean."""

    seconds: float
    loads: float


def counted(name: str, work: Callable[[], list[Evaluation]]) -> tuple[list[Evaluation], Cost]:
    """The evaluations; seconds and loads are printed, as the run's trace tells of them."""
    start_s = time.perf_counter()
    with TemporaryDirectory() as folder:
        with RunTrace(directory=Path(folder)) as run:
            found = work()
        line = next(one for one in read_runs(run.runs_path) if isinstance(one, RunLine))
    seconds = time.perf_counter() - start_s
    each = Cost(seconds / len(found), line.loads / len(found))
    print(
        f"{name:<17}{len(found):4} answers, {line.loads:3} loads, {seconds:5.1f} s: "
        f"{each.seconds:.2f} s an answer",
        flush=True,
    )
    return found, each


def main() -> None:
    """Judge some answers one by one, and all of them judge by judge."""
    draw = random.Random(1)  # noqa: S311 - nothing secret
    chosen = list(islice(sheets(seed=4), ANSWERS))
    reports = [s.report([f for f in s.facts if draw.random() > 0.3] or None) for s in chosen]
    work = [(sheet.task, report) for sheet, report in zip(chosen, reports, strict=True)]
    config = configured()
    limit = config["budget"]["limit"] / 1e6
    print(f"three judges ({', '.join(KINDS)}); the limit of {limit:.0f} MB holds one of them")
    with Shim(config, inline=True, share=True) as shim:
        pool = EvaluatorPool(list(shim.config.models), "panel")
        # Coarser than an evaluator should be, and let in by its name.
        judge = Judge(shim, RUBRIC, pool, prompt=judge_prompt, overridden=["judge-Q5_K_M"])
        some = work[:ONE_BY_ONE]
        _, dear = counted("answer by answer", lambda: [judge.evaluate(*one) for one in some])
        every, cheap = counted("judge by judge", lambda: judge.evaluate_many(work))
    print(
        f"judge by judge is {dear.seconds / cheap.seconds:.1f} times as fast; "
        f"answer by answer would load about {dear.loads * ANSWERS:.0f} times for all {ANSWERS}"
    )
    pairs = zip(chosen, reports, every, strict=True)
    wrong = fmean(abs(true_composite(s, r) - one.composite) for s, r, one in pairs)
    disputed = sum(one.disputed for one in every)
    print(
        f"the panel's scores are {wrong:.2f} of 10 from the truth in the mean; "
        f"the judges disagree on {disputed} answers"
    )


if __name__ == "__main__":
    main()
