"""Many tasks at once, grouped by model: all texts of a round are written, then all are judged.

In a budget that holds the producer or the evaluator, not both, task after task costs two loads for each
round of each task. Grouped, a round of all tasks costs two loads.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from harness.given import a_count, a_file, a_list, an_object
from harness.progress_bar import progress_bar
from harness.record_files import is_there, make_folder
from harness.refine.record import RecordFile, RefineRecord
from harness.refine.refine import Refine, first_notes, noted, run_id
from harness.side_by_side import as_they_end, threads
from shim import EndpointError, InvalidRequest, KeepwarmError, Plan, PromptTooLong
from shim.paths import raise_descriptor_limit

LOG = logging.getLogger("keepwarm.harness")

OF_ONE_TASK: Final = (InvalidRequest, PromptTooLong, EndpointError)
"""Errors that the other tasks of a batch need not have: an input that cannot be, an answer that is none."""
_WORDS: Final = re.compile(r"[a-z0-9]+")
_NAMED: Final = 48
MANY_RECORDS: Final = 256
"""Each record that a batch owns is an open file, and many systems allow 1,024 unless asked."""
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

    Where models take turns for their bytes, log and notes say so. A task that cannot be done ends by itself
    as "failed", with the error for its last note, and so does one whose record another run works with. Its
    file has neither, so that the next run tries again.

    Args:
        refine: how each task is run.
        tasks: each once; two equal ones would have one record.
        records: a folder with a record a task, written after every step. A task goes on from its record.
        at_once: requests that are under way together.
        quiet: show no progress bar. There is none outside a terminal anyway.

    Raises:
        InvalidRequest: a task is empty or stands there twice, or a record is of other settings.
        OutsideError: the records cannot be written; nothing was run.
        KeepwarmError: as `Shim.chat`, the first one that is no single task's, or where no task could be
            done; steps that were under way are finished and kept.
    """
    an_object("`refine`", refine, Refine)
    a_count("`at_once`", at_once)
    tasks = list(a_list("The tasks", tasks, str))
    files = _files(tasks, records)
    notes = first_notes(refine)
    kept = {task: RecordFile(file) for task, file in files.items() if file is not None}
    now = {task: noted(refine.begin(task, files[task]), notes) for task in tasks}
    batch = _Batch(refine, now, kept)
    with (
        batch.owned(),
        progress_bar(batch.done, 2 * len(tasks) * refine.max_rounds, quiet=quiet) as advance,
        closing(refine.shim.plan()) as plan,
    ):
        told = 0
        for steps in batch.run(plan, at_once):
            advance(steps - told, batch.done)
            told = steps
    if 0 < len(batch.failed) == len(tasks):
        raise batch.failed[tasks[0]]
    return [now[task] for task in tasks]


def _files(tasks: Sequence[str], records: Path | str | None) -> dict[str, Path | None]:
    """The file of each task's record, in a folder that is there; each task stands there once."""
    if doubled := [task for task, count in Counter(tasks).items() if count > 1]:
        raise InvalidRequest(
            f"The task {doubled[0][:60]!r} stands there twice.", hint="Give each task once."
        )
    if records is None:
        return dict.fromkeys(tasks)
    folder = a_file("`records`", records)
    make_folder(folder)
    return {task: _file_of(task, folder) for task in tasks}


def _file_of(task: str, folder: Path) -> Path:
    """The task's first words, so that people find its record, and its hash, which tells it from others.

    Records of earlier keepwarms have longer hashes alone for names, and are gone on with.
    """
    if is_there(earlier := folder / f"{run_id(task)[:32]}.json"):
        return earlier
    words = "-".join(_WORDS.findall(task[:200].casefold()))[:_NAMED].rstrip("-")
    return folder / f"{words}{'-' if words else ''}{run_id(task)[:16]}.json"


class _Batch:
    """The records of many tasks as they are `now`, the files that they are kept in, and what `failed`."""

    def __init__(
        self, refine: Refine, now: dict[str, RefineRecord], kept: Mapping[str, RecordFile]
    ) -> None:
        self._refine, self._now, self._kept = refine, now, kept
        self.failed: dict[str, KeepwarmError] = {}

    @contextmanager
    def owned(self) -> Iterator[None]:
        """The records are this run's alone. A task whose record is another run's has failed."""
        if len(self._kept) > MANY_RECORDS:
            raise_descriptor_limit()
        with ExitStack() as owned:
            for task, file in self._kept.items():
                try:
                    owned.enter_context(file.owned_for(self._now[task]))
                except InvalidRequest as error:
                    self._fail(self._now[task], error)
            yield

    def run(self, plan: Plan, at_once: int) -> Iterator[int]:
        """All steps; gives the number of those that are done after each, whose record is written then."""
        refine, judges = self._refine, list(self._refine.judge.pool.models)
        while waiting := [one for one in self._now.values() if one.stopped is None]:
            judging = [one for one in waiting if refine.is_to_judge(one)]
            # One use of a model stands for a whole phase: what comes after it is what may be made ready.
            plan.declare([*judges, refine.producer] if judging else [refine.producer, *judges])
            for record, error in _after_a_step(refine, judging, waiting, at_once):
                self._take(record, error)
                yield self._steps()

    @property
    def done(self) -> str:
        """How many tasks have ended, in words."""
        done = sum(record.stopped is not None for record in self._now.values())
        return f"{done} of {len(self._now)} tasks done"

    def _steps(self) -> int:
        """Steps that are done, with those that a run which ended early did not need."""
        refine, whole = self._refine, 2 * self._refine.max_rounds
        return sum(
            whole if one.stopped else 2 * len(one.rounds) - refine.is_to_judge(one)
            for one in self._now.values()
        )

    def _take(self, record: RefineRecord, error: KeepwarmError | None) -> None:
        self._now[record.task], file = record, self._kept.get(record.task)
        if error is None and file is not None:
            try:
                file.save(record)
            except InvalidRequest as unkept:
                # Another run has this task. What else fails ends the batch.
                error = unkept
        if error is not None:
            self._fail(record, error)

    def _fail(self, record: RefineRecord, error: KeepwarmError) -> None:
        LOG.warning("a task failed, the others go on: %s", error)
        self.failed[record.task] = error
        notes = (*record.notes, str(error))
        self._now[record.task] = replace(record, stopped="failed", notes=notes)


def _after_a_step(
    refine: Refine, judging: Sequence[RefineRecord], waiting: Sequence[RefineRecord], at_once: int
) -> Iterator[tuple[RefineRecord, KeepwarmError | None]]:
    """Each record after its next step, as soon as it is there: judged, if any is to be judged.

    One whose step is its own failure comes as it was before, with the error.
    """
    left = dict(enumerate(judging))
    if judging:
        work = [(record.task, record.rounds[-1].produced.text) for record in judging]
        ids = [run_id(record.task) for record in judging]
        try:
            for number, found in refine.judge.each_evaluated(work, ids, at_once):
                yield refine.with_evaluation(left.pop(number), found), None
        except OF_ONE_TASK as error:
            LOG.warning(
                "the answers that are left are judged each by itself, because of: %s", error
            )
    step, todo = (refine.judged, list(left.values())) if judging else (refine.produced, waiting)
    with threads(at_once, "refine") as pool:
        for future in as_they_end([pool.submit(_done, step, one) for one in todo]):
            yield future.result()


def _done(
    step: Callable[[RefineRecord], RefineRecord], record: RefineRecord
) -> tuple[RefineRecord, KeepwarmError | None]:
    try:
        return step(record), None
    except OF_ONE_TASK as error:
        return record, error
