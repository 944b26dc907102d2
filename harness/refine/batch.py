"""Many tasks at once, grouped by model: all texts of a round are written, then all are judged.

In a budget that holds the producer or the evaluator, not both, task after task costs two loads for each
round of each task. Grouped, a round of all tasks costs two loads.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.given import a_count, a_file, a_list, an_object
from harness.progress_bar import progress_bar
from harness.refine.record import RefineRecord, make_folder
from harness.refine.refine import Refine, run_id
from harness.side_by_side import as_they_end, threads
from shim import InvalidRequest

LOG = logging.getLogger("keepwarm.harness")

AT_ONCE: Final = 16
"""Requests that are under way together; those over the engine's slots wait in the keeper's queue."""


def run_many(
    refine: Refine,
    tasks: Sequence[str],
    *,
    records: Path | str | None = None,
    at_once: int = AT_ONCE,
    quiet: bool = False,
) -> list[RefineRecord]:
    """The records of all tasks, in their order. The coming uses of models are declared meanwhile.

    Judges are asked one after another. Where models take turns for their bytes, the log and every record's
    notes say so with the bytes.

    Args:
        refine: how each task is run.
        tasks: each once; two equal ones would have one record.
        records: a folder with a record a task, written after every step. Tasks whose records are there go
            on from them.
        at_once: requests that are under way together.
        quiet: show no progress bar. There is none outside a terminal anyway.

    Raises:
        InvalidRequest: a task is empty or stands there twice, or a record is of other settings.
        OutsideError: the records cannot be written; nothing was run.
        KeepwarmError: as `Shim.chat`, the first one; steps that were under way are finished and kept.
    """
    an_object("`refine`", refine, Refine)
    a_count("`at_once`", at_once)
    if len(set(a_list("The tasks", tasks, str))) != len(tasks):
        raise InvalidRequest("A task stands there twice.", hint="Give each task once.")
    files = _files(tasks, records)
    if why := why_grouped(refine):
        LOG.info("%s", why)
    now = {task: _noted(refine.begin(task, files[task]), why) for task in tasks}
    with (
        progress_bar("steps", 2 * len(tasks) * refine.max_rounds, quiet=quiet) as advance,
        _uses(refine) as declare,
    ):
        told = 0
        while waiting := [record for record in now.values() if record.stopped is None]:
            judging = [record for record in waiting if refine.is_to_judge(record)]
            declare(judging=bool(judging))
            for record in _after_a_step(refine, judging, waiting, at_once):
                now[record.task] = record
                if (file := files[record.task]) is not None:
                    record.save(file)
                for _ in range(_steps(refine, now.values()) - told):
                    advance()
                    told += 1
    return [now[task] for task in tasks]


def _files(tasks: Sequence[str], records: Path | str | None) -> dict[str, Path | None]:
    """The file of each task's record, in a folder that is there."""
    if records is None:
        return dict.fromkeys(tasks)
    folder = a_file("`records`", records)
    make_folder(folder)
    return {task: folder / _name_of(task) for task in tasks}


def _after_a_step(
    refine: Refine, judging: Sequence[RefineRecord], waiting: Sequence[RefineRecord], at_once: int
) -> Iterator[RefineRecord]:
    """Each record after its next step, as soon as it is there: judged, if any is to be judged."""
    if judging:
        work = [(record.task, record.rounds[-1].produced.text) for record in judging]
        ids = [run_id(record.task) for record in judging]
        for number, found in refine.judge.each_evaluated(work, ids, at_once):
            yield refine.with_evaluation(judging[number], found)
        return
    with threads(at_once, "refine") as pool:
        for future in as_they_end([pool.submit(refine.produced, one) for one in waiting]):
            yield future.result()


def _steps(refine: Refine, records: Iterable[RefineRecord]) -> int:
    """Steps that are done, with those that a run which ended early did not need."""
    whole = 2 * refine.max_rounds
    return sum(
        whole if one.stopped else 2 * len(one.rounds) - refine.is_to_judge(one) for one in records
    )


def _noted(record: RefineRecord, why: str) -> RefineRecord:
    if not why or why in record.notes:
        return record
    return replace(record, notes=(*record.notes, why))


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
