"""Many tasks at once, grouped by model: all texts of a round are written, then all are judged.

In a budget that holds the producer or the evaluator, not both, task after task costs two loads for each
round of each task. Grouped, a round of all tasks costs two loads.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from harness.progress_bar import progress_bar
from harness.refine.record import RefineRecord
from harness.refine.refine import Refine
from shim import InvalidRequest

LOG = logging.getLogger("keepwarm.harness")

AT_ONCE: Final = 16
"""Requests that are under way together; those over the engine's slots wait in the keeper's queue."""


def run_many(
    refine: Refine,
    tasks: Sequence[str],
    *,
    records: Path | None = None,
    at_once: int = AT_ONCE,
    quiet: bool = False,
) -> list[RefineRecord]:
    """The records of all tasks, in their order. The coming uses of models are declared meanwhile.

    Args:
        refine: how each task is run.
        tasks: each once; two equal ones would have one record.
        records: a folder with a record a task, written after every step. Tasks whose records are there go
            on from them.
        at_once: requests that are under way together.
        quiet: show no progress bar. There is none outside a terminal anyway.

    Raises:
        InvalidRequest: a task is empty or stands there twice, or a record is of other settings.
        KeepwarmError: as `Shim.chat`, the first one; steps that were under way are finished and kept.
    """
    if len(set(tasks)) != len(tasks):
        raise InvalidRequest("A task stands there twice.", hint="Give each task once.")
    if records is not None:
        records.mkdir(parents=True, exist_ok=True)
    files = {task: None if records is None else records / _name_of(task) for task in tasks}
    now = {task: refine.begin(task, files[task]) for task in tasks}
    if why := why_grouped(refine):
        LOG.info("%s", why)
    with (
        progress_bar("rounds", len(tasks) * refine.max_rounds, quiet=quiet) as advanced,
        ThreadPoolExecutor(at_once, "refine") as pool,
        _uses(refine) as declare,
    ):
        while waiting := [record for record in now.values() if record.stopped is None]:
            judging = [record for record in waiting if refine.is_to_judge(record)]
            phase = judging or waiting
            declare(judging=bool(judging))
            step = refine.judged if judging else refine.produced
            for record in _all_done(pool, step, phase):
                now[record.task] = record
                if (file := files[record.task]) is not None:
                    record.save(file)
                if judging:
                    advanced()
    return [now[task] for task in tasks]


def why_grouped(refine: Refine) -> str:
    """Why producer and judges take turns, with the bytes; empty where they are resident together.

    Raises:
        KeepwarmError: a model cannot be run, with the reason.
    """
    found = refine.shim.what_if([refine.producer, *refine.judge.models.models])
    if found["together"]:
        return ""
    sizes = [
        f"{model} takes {amount:,} bytes of {device}"
        for model, by_device in found["bytes"].items()
        for device, amount in by_device.items()
    ]
    limits = " and ".join(f"{limit:,} bytes of {name}" for name, limit in found["limits"].items())
    return f"{', '.join(sizes)}; the limit is {limits}. They take turns, a round of all tasks each."


def _all_done(
    pool: ThreadPoolExecutor,
    step: Callable[[RefineRecord], RefineRecord],
    records: Iterable[RefineRecord],
) -> Iterator[RefineRecord]:
    """Each record after its step, as soon as it is there. After a failure no further step begins."""
    left = {pool.submit(step, record) for record in records}
    failure: BaseException | None = None
    while left:
        done, left = wait(left, return_when=FIRST_EXCEPTION)
        for future in done:
            if future.cancelled():
                continue
            if (error := future.exception()) is None:
                yield future.result()
                continue
            failure = failure or error
            for other in left:
                other.cancel()
    if failure is not None:
        raise failure


@contextmanager
def _uses(refine: Refine) -> Iterator[Callable[..., None]]:
    plan = refine.shim.plan()
    judges = list(refine.judge.models.models)

    def declare(*, judging: bool) -> None:
        # One use of a model stands for a whole phase: what comes after it is what may be made ready.
        order = [*judges, refine.producer] if judging else [refine.producer, *judges]
        plan.declare(order)

    try:
        yield declare
    finally:
        plan.close()


def _name_of(task: str) -> str:
    return hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:32] + ".json"
