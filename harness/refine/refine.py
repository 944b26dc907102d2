"""Produce, evaluate, revise: `Refine` improves an answer until its composite passes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from harness.evaluation.compressor import Compressor
from harness.evaluation.judge import EvaluatorPool, Judge
from harness.evaluation.judge import Prompt as JudgePrompt
from harness.evaluation.judge import prompt as asked_of_judges
from harness.evaluation.judgement import Evaluation
from harness.evaluation.rubric import HIGHEST, Rubric
from harness.given import (
    a_count,
    a_file,
    a_function,
    a_number,
    a_text,
    an_object,
    options_beside,
)
from harness.on_trace import span
from harness.record_files import check_writable, is_there
from harness.refine.prompts import Prompt, prompt
from harness.refine.record import (
    Produced,
    RecordFile,
    RefineRecord,
    Settings,
    Stopped,
)
from harness.roles import unread, why_overridden
from shim import EndpointError, InvalidRequest, KeepwarmError, Shim, default_shim
from traces.names import CHAIN

LOG = logging.getLogger("keepwarm.harness")

THRESHOLD: Final = 8.0
FLOOR: Final = 7.0
MAX_ROUNDS: Final = 3
NO_PROGRESS: Final = 2
"""So many rounds without a better composite end a run."""

Progress = Callable[[RefineRecord], None]


class Refine:
    """Improves answers: a producer writes, judges score, the producer revises what they found weak.

    A run ends when a composite reaches the threshold, after `max_rounds`, when two rounds brought nothing
    better, or when the producer repeats itself. The record's `answer` is the best round's, not the last's.
    Readers of the pattern know it as the Wiggum loop.

    Args:
        producer: the model that writes.
        evaluator: the model that judges, or an `EvaluatorPool`.
        rubric: what is judged.
        threshold: the composite that passes, 0 to 10.
        max_rounds: texts that are written at most.
        floor: dimensions under it are revised.
        shim: has the models; by default that of the found configuration.
        compressor: cuts what the judges read.
        prompt: makes the producer's messages of the record so far.
        judge_prompt: makes the judges' messages of rubric, task and text.
        overrides: evaluators that may judge although they are coarser than Q8_0 or the producer itself;
            record and trace name them.
        options: of `Shim.chat`, for the producer, as `deadline_s`.
        judge_options: the same for the judges.

    Raises:
        InvalidRequest: a number is out of its range, or an argument is of another type.
        RoleViolation: an evaluator is coarser than Q8_0, or has the producer's weights.
        UnknownModel: a model is not configured.
    """

    def __init__(
        self,
        producer: str,
        evaluator: str | EvaluatorPool,
        rubric: Rubric,
        *,
        threshold: float = THRESHOLD,
        max_rounds: int = MAX_ROUNDS,
        floor: float = FLOOR,
        shim: Shim | None = None,
        compressor: Compressor | None = None,
        prompt: Prompt = prompt,
        judge_prompt: JudgePrompt = asked_of_judges,
        overrides: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
        judge_options: Mapping[str, Any] | None = None,
    ) -> None:
        a_text("`producer`", producer)
        an_object("`evaluator`", evaluator, (str, EvaluatorPool))
        an_object("`rubric`", rubric, Rubric)
        a_number("`threshold`", threshold, 0, HIGHEST)
        a_number("`floor`", floor, 0, HIGHEST)
        a_count("`max_rounds`", max_rounds)
        a_function("`prompt`", prompt)
        self.shim = an_object("`shim`", shim, (Shim, type(None))) or default_shim()
        an_object("`compressor`", compressor, (Compressor, type(None)))
        pool = EvaluatorPool([evaluator]) if isinstance(evaluator, str) else evaluator
        judges = [self.shim.describe(name) for name in pool.models]
        used = tuple(why_overridden(judges, [self.shim.describe(producer)], overrides))
        self.unread = unread(judges)
        self.judge = Judge(
            self.shim, rubric, pool, compressor or Compressor(), judge_prompt,
            options={} if judge_options is None else judge_options, overridden=used,
        )  # fmt: skip
        self.producer = producer
        self._prompt = prompt
        self._options = dict(options_beside({} if options is None else options))
        self._settings = Settings(
            producer, pool.models, threshold, max_rounds, floor, rubric.to_json(), used
        )

    def __repr__(self) -> str:
        asked = self._settings
        return (
            f"Refine({self.producer!r}, {self.judge.pool!r}, {self.judge.rubric!r}, "
            f"threshold={asked.threshold:g}, max_rounds={asked.max_rounds})"
        )

    @property
    def max_rounds(self) -> int:
        """Texts that are written at most."""
        return self._settings.max_rounds

    # One task

    def run(
        self, task: str, record: Path | str | None = None, progress: Progress | None = None
    ) -> RefineRecord:
        """The whole run of a task.

        Args:
            task: what the producer is asked.
            record: a file that has the record after every step. A run that finds one there goes on
                from it; a finished one is returned as it is.
            progress: gets the record after every step.

        Raises:
            InvalidRequest: the task is empty, the file's record is of another task or other settings, or
                another run works with it (fact `pid`: the process, where that is known).
            OutsideError: the record cannot be written there.
            KeepwarmError: as `Shim.chat`. What was finished is in the record, and in the error's facts:
                `RefineRecord.from_json(error.facts["record"])`.
        """
        file = None if record is None else a_file("`record`", record)
        if progress is not None:
            a_function("`progress`", progress)
        kept = None if file is None else RecordFile(file)
        now = self.begin(task, file)
        with nullcontext() if kept is None else kept.owned_for(now):
            if now.stopped is None:
                now = noted(now, first_notes(self))
            while now.stopped is None:
                now = self._kept_step(now, kept)
                if progress is not None:
                    progress(now)
        return now

    def _kept_step(self, now: RefineRecord, kept: RecordFile | None) -> RefineRecord:
        try:
            now = self.step(now)
            if kept is not None:
                kept.save(now)
        except KeepwarmError as error:
            if now.rounds:
                error.facts["record"] = now.to_json()
            raise
        return now

    def begin(self, task: str, record: Path | str | None = None) -> RefineRecord:
        """The record to go on from: a new one, or the file's.

        Raises:
            InvalidRequest: as `run`.
            OutsideError: as `run`.
        """
        file = None if record is None else a_file("`record`", record)
        if not a_text("The task", task).strip():
            raise InvalidRequest("The task is empty.", hint="Say what the producer is to write.")
        found = RefineRecord.load(file) if file is not None and is_there(file) else None
        if file is not None and (found is None or found.stopped is None):
            check_writable(file)
        if found is None:
            return RefineRecord(task, self._settings)
        if (found.task, found.settings) != (task, self._settings):
            raise InvalidRequest(
                f"{record} is the record of {_difference(found, task, self._settings)}.",
                hint="Name another file for this run.",
                file=str(record),
            )
        # A text of nothing, as older records may have, can never be judged: it is written anew.
        empty = self.is_to_judge(found) and not found.rounds[-1].produced.text.strip()
        return replace(found, rounds=found.rounds[:-1]) if empty else found

    def step(self, record: RefineRecord) -> RefineRecord:
        """The record after its next step: a text, or the evaluation of the last one."""
        if self.is_to_judge(record):
            return self.judged(record)
        return self.produced(record)

    def is_to_judge(self, record: RefineRecord) -> bool:
        """Whether the next step is the evaluation of a text that is there."""
        an_object("`record`", record, RefineRecord)
        return bool(record.rounds) and record.rounds[-1].evaluation is None

    def produced(self, record: RefineRecord) -> RefineRecord:
        """The record with its next text. A text that was there before ends the run unjudged.

        Raises:
            EndpointError: the producer answered nothing.
            KeepwarmError: as `Shim.chat`.
        """
        number = len(record.rounds) + 1
        with _span("produce" if number == 1 else "revise", self.producer, number, record.task):
            reply = self.shim.chat(self.producer, self._prompt(record), **self._options)
        made = Produced.of(reply)
        if not made.text.strip():
            raise EndpointError(
                f"The producer {self.producer} answered nothing (it ended by {reply.finish_reason!r}).",
                hint="Raise `max_tokens`, look at the prompt, or let it try again.",
                model=self.producer,
            )
        known = (one.produced.text.split() for one in record.rounds)
        after = record.with_text(made)
        return replace(after, stopped="repeated") if made.text.split() in known else after

    def judged(self, record: RefineRecord) -> RefineRecord:
        """The record with its last text's evaluation, and its end where that ends it."""
        if not self.is_to_judge(record):
            raise InvalidRequest(
                "The record has no text that is to be judged.",
                hint="`produced` writes the next one.",
            )
        text = record.rounds[-1].produced.text
        judges = self.judge.pool.chosen(run_id(record.task))
        with _span("evaluate", ", ".join(judges), len(record.rounds), record.task):
            found = self.judge.evaluate(record.task, text, run_id(record.task))
        return self.with_evaluation(record, found)

    def with_evaluation(self, record: RefineRecord, found: Evaluation) -> RefineRecord:
        """The record with its last text's evaluation, and its end where that ends it."""
        after = record.with_scores(found)
        return replace(after, stopped=_end(after))


WiggumLoop = Refine
"""The name by which readers of the pattern look for it."""


def why_turns(refine: Refine) -> str:
    """Why producer and judges take turns, with the bytes; empty where they are resident together.

    Raises:
        KeepwarmError: a model cannot be run, with the reason.
    """
    found = refine.shim.what_if([refine.producer, *refine.judge.pool.models])
    if found["together"]:
        return ""
    sizes = [
        f"{model} takes {amount:,} bytes of {device}"
        for model, by_device in found["bytes"].items()
        for device, amount in by_device.items()
    ]
    limits = " and ".join(f"{limit:,} bytes of {name}" for name, limit in found["limits"].items())
    why = f"{', '.join(sizes)}; the limit is {limits}. They take turns."
    LOG.info("%s", why)
    return why


def first_notes(refine: Refine) -> list[str]:
    """What a record says of its run: why models take turns, and which judges could not be looked at.

    Raises:
        KeepwarmError: as `why_turns`.
    """
    unread = ", ".join(refine.unread)
    said = f"{unread}: precision unchecked, because it cannot be read." if unread else ""
    return [note for note in (why_turns(refine), said) if note]


def noted(record: RefineRecord, notes: Sequence[str]) -> RefineRecord:
    """The record with notes, each once."""
    return replace(record, notes=tuple(dict.fromkeys([*record.notes, *notes])))


def run_id(task: str) -> str:
    """What a pool chooses a task's judge by."""
    return hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()


def _end(record: RefineRecord) -> Stopped | None:
    composites = [one.evaluation.composite for one in record.rounds if one.evaluation is not None]
    if composites[-1] >= record.settings.threshold:
        return "passed"
    if len(composites) >= record.settings.max_rounds:
        return "max_rounds"
    if len(composites) > NO_PROGRESS and max(composites[-NO_PROGRESS:]) <= max(
        composites[:-NO_PROGRESS]
    ):
        return "no_progress"
    return None


def _span(name: str, model: str, number: int, task: str) -> AbstractContextManager[object]:
    """A step's span on the trace; arrows join the steps of one task."""
    return span(name, model=model, round=number, **{CHAIN: run_id(task)})


def _difference(found: RefineRecord, task: str, settings: Settings) -> str:
    if found.task != task:
        return "another task"
    names = [n for n in Settings.__slots__ if getattr(found.settings, n) != getattr(settings, n)]
    return f"other settings ({', '.join(names)})"
