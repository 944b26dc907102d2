"""`RunTrace`: one run, its spans, its trace file and its line in `runs.jsonl`."""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, ParamSpec, Self, TypeVar

from opentelemetry.sdk.trace.export import SpanExporter

from traces import names
from traces.checked import (
    EnteredTwice,
    a_file,
    a_function,
    a_list,
    a_moment,
    a_number,
    a_text,
)
from traces.chrome.file import stem_of
from traces.current import RunContext
from traces.place import absolute, check_run_id, default_directory, new_run_id
from traces.processes.at_exit import at_process_end
from traces.processes.part_lines import Recording
from traces.processes.part_of_run import PartOfRun
from traces.processes.shared_run import RunFacts, SharedRun, named_run, share
from traces.recording.broken_sinks import Problems
from traces.recording.exporters import Exporters
from traces.recording.run_files import MAX_BYTES, RunFiles, RunSettings
from traces.recording.run_recording import RunRecording
from traces.recording.span_handle import open_span, reset_span
from traces.recording.writer import Writer
from traces.runs import FILE_NAME
from traces.span_data import SpanData
from traces.text import clean, error_text, failure_attributes

_P = ParamSpec("_P")
_R = TypeVar("_R")


class RunTrace(RunRecording):
    """A run: everything recorded between entering and leaving goes to its trace and its line.

    Its methods never raise for a broken file or exporter: the first failure of each is logged as a
    warning and kept in `problems`, and the run goes on.

    Args:
        run_id: letters, digits, `.`, `_`, `-`; made up when None.
        directory: of the trace and of `runs.jsonl`; `default_directory()` when None.
        gzip: compress the trace when the run ends.
        record_content: keep prompts and answers. Off by default.
        service: name of the program, `service.name` of its spans.
        exporters: OpenTelemetry exporters that get every span too.
        process_wide: threads without a run in their context record to this run while it is the only one,
            and so do processes that are started or forked while it is open.
        sample: the share of requests that are recorded, from 0 to 1. A span that is open in no other is
            drawn with all in it; loads, evictions and the books of devices are recorded always.
        max_bytes: size of a trace's file at which the next one begins, with a line of its own.
        max_age: seconds after which the next one begins; None: never.
        current: make it the current run of the context that enters it. Otherwise it has only what is
            recorded through this object.
        started_ns: when it began (monotonic nanoseconds), for a run whose past is recorded afterwards.

    Raises:
        InvalidArgument: says what was found and what is allowed, as all its methods do.
    """

    def __init__(
        self,
        run_id: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        *,
        gzip: bool = False,
        record_content: bool = False,
        service: str = "keepwarm",
        exporters: Sequence[SpanExporter] = (),
        process_wide: bool = True,
        sample: float = 1.0,
        max_bytes: int = MAX_BYTES,
        max_age: float | None = None,
        current: bool = True,
        started_ns: int | None = None,
    ) -> None:
        self.run_id = new_run_id() if run_id is None else check_run_id(run_id)
        given = default_directory() if directory is None else a_file("directory", directory)
        self.directory = absolute(given)
        self.record_content = record_content
        self.service = clean(a_text("service", service))
        self.process_wide = process_wide
        self.sample = a_number("sample", sample, 0, 1)
        self._is_current = current
        self._began_ns = None if started_ns is None else a_moment("started_ns", started_ns)
        self._problems = Problems(self.run_id)
        self._gzip = gzip
        self._max_bytes = int(a_number("max_bytes", max_bytes, 1))
        self._max_age = None if max_age is None else a_number("max_age", max_age, 0)
        self._given_exporters = tuple(a_list("exporters", exporters, SpanExporter))
        self._finishers: list[Callable[[], None]] = []
        self._state = "new"
        self._started_ns = 0
        self._shared: SharedRun | None = None
        self._part: PartOfRun | None = None
        self._before: RunTrace | None = None
        self._number_ids()
        self._root_id = self._next_id()

    @property
    def active(self) -> bool:
        """Whether the run has begun and not ended; in a forked child whether that takes part in it."""
        return self._state == "active" and self._pid == os.getpid()

    @property
    def problems(self) -> list[str]:
        """What broke on the way, each thing once."""
        return self._problems.found

    @property
    def trace_path(self) -> Path | None:
        """The trace file, the last of several; None before the run is entered and if none could be made."""
        if self._part is not None:
            return self._part.trace
        return None if self._state == "new" else self._files.path

    @property
    def runs_path(self) -> Path:
        """The `runs.jsonl` that gets this run's line."""
        return self.directory / FILE_NAME

    @property
    def started_ns(self) -> int:
        """When the run was entered, in monotonic nanoseconds; 0 before that."""
        return self._started_ns

    def on_finish(self, action: Callable[[], None]) -> None:
        """Call `action` when the run is left, while it still records; its failure is a problem."""
        self._finishers.append(a_function("action", action))

    # -- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._state != "new":
            raise EnteredTwice(f"Run {self.run_id}", "Make a new RunTrace for each run.")
        now_ns = time.monotonic_ns()
        self._started_ns = now_ns if self._began_ns is None else self._began_ns
        self._offset_ns = time.time_ns() - now_ns
        given, problems = self._given_exporters, self._problems
        self._exporters = Exporters(given, problems, service=self.service, run_id=self.run_id)
        self._files = self._new_files()
        self._recorder: Recording = self._files.recorder
        self._opened = self._files.opened
        self._writer = Writer(f"keepwarm-trace-{self.run_id}", self._problems, self._files.flush)
        self._state = "active"
        if self._is_current:
            self._before = _context.enter(self)
            if self.process_wide:
                self._problems.guard("part", self._share)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.active:
            return
        if self._is_current:
            _context.leave(self, self._before)
        if self._part is not None:
            self._leave_part()
            return
        files, guard = self._files, self._problems.guard
        ended_ns = time.monotonic_ns()
        if self._shared is not None:
            guard("part", self._shared.end)
        failure = None if _is_clean_exit(error) else error
        # Ctrl-C ends the step that it comes in: those above it here are done nevertheless.
        with ExitStack() as steps:
            later = steps.callback
            later(guard, "runs.jsonl", lambda: files.append_line(ended_ns, failure))
            later(guard, "exporters", lambda: self._export_root(ended_ns, failure))
            later(guard, "trace file", lambda: files.close_file(ended_ns, failure))
            later(guard, "recorder", self._writer.close)
            later(self._finish)
            # Before the history of the keeper: requests know best what they waited for.
            guard("recorder", lambda: self._writer.end(files.take_in))

    def _finish(self) -> None:
        try:
            for finish in self._finishers:
                self._problems.guard("on_finish", finish)
        finally:
            self._state = "ended"

    def _new_files(self) -> RunFiles:
        settings = RunSettings(
            self.run_id, self.service, self.directory, compress=self._gzip,
            record_content=self.record_content, max_bytes=self._max_bytes, max_age_s=self._max_age,
            offset_ns=self._offset_ns,
        )  # fmt: skip
        return RunFiles(
            settings, self._exporters, self._problems, self._started_ns, new_id=self._next_id
        )

    def _export_root(self, ended_ns: int, error: BaseException | None) -> None:
        attributes = {names.RUN_ID: self.run_id, **failure_attributes(error)}
        start_ns, end_ns = self._started_ns + self._offset_ns, ended_ns + self._offset_ns
        failure = None if error is None else error_text(error)
        self._exporters.send(
            SpanData(names.RUN, self._root_id, 0, start_ns, end_ns, attributes, failure=failure)
        )
        self._exporters.shut_down()

    # -- other processes --------------------------------------------------------------------------

    def _share(self) -> None:
        trace = self._files.path
        if trace is None:
            return
        facts = RunFacts(
            run_id=self.run_id,
            service=self.service,
            stem=stem_of(trace),
            root_id=self._root_id,
            offset_ns=self._offset_ns,
            base_ns=self._files.base_ns,
            sample=self.sample,
            record_content=self.record_content,
            max_bytes=self._max_bytes,
        )
        self._shared = share(trace, facts)
        self._files.expect_parts()

    def after_fork(self) -> bool:
        """In a forked child: take part in the run. Returns False for a run that is not for children."""
        if self._state != "active" or self._shared is None:
            return False
        self._shared.forked()
        self._take_part(self._shared)
        return True

    def _take_part(self, shared: SharedRun) -> None:
        """Record to a part of the run from here on, which another process opened."""
        self._shared = shared
        self._number_ids()
        self._finishers = []
        self._problems = Problems(self.run_id)
        self._part = part = PartOfRun(shared, self._problems)
        self._recorder, self._opened = part.recorder, part.recorder.opened
        self._writer = Writer(
            f"keepwarm-trace-{self.run_id}",
            self._problems,
            self._part_written,
            at_start=lambda: at_process_end(self._leave_part),
        )
        self._state = "active"

    def _join(self, shared: SharedRun) -> None:
        """Take part in a run of the process that started this one."""
        self._started_ns = time.monotonic_ns()
        self._offset_ns, self._root_id = shared.facts.offset_ns, shared.facts.root_id
        self._take_part(shared)

    def _part_written(self) -> None:
        if self._part is not None:
            self._part.flush()
            if self._part.over:
                self._state = "ended"

    def _leave_part(self) -> None:
        """End this process's part; the run goes on elsewhere."""
        part = self._part
        if part is None or not self.active:
            return
        self._problems.guard("recorder", self._writer.end)
        self._writer.put((part.recorder.ends,))
        self._finish()
        self._problems.guard("recorder", self._writer.close)
        self._problems.guard("part", part.close)

    def _number_ids(self) -> None:
        self._pid = os.getpid()
        # Ids of a process start anywhere, so that those of several processes hardly ever meet.
        self._next_id = itertools.count(secrets.randbits(62) + 1).__next__

    def flush(self) -> None:
        """Write what was recorded so far; without it that takes a tenth of a second."""
        if self.active:
            self._problems.guard("recorder", self._writer.flush)

    def carry(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """`function` as one that belongs to this run, and to the span open here, in any thread."""
        a_function("function", function, awaited=True)
        parent = open_span.get()

        @functools.wraps(function)
        def carried(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            before = _context.adopt(self)
            token = open_span.set(parent)
            try:
                return function(*args, **kwargs)
            finally:
                reset_span(token)
                _context.adopt(before)

        return carried


_context: Final = RunContext()

current_run = _context.get
"""The run that this code belongs to, or None: the whole cost of tracing when it is off.

A run follows its context into asyncio tasks. A plain thread belongs to the process's one active run,
unless several are active or it was made with `process_wide=False`; `RunTrace.carry` then takes a
function into the thread.
"""


def _is_clean_exit(error: BaseException | None) -> bool:
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def _of_parent() -> RunTrace | None:
    """The run of the process that started this one, where there is one that is open."""
    shared = named_run()
    if shared is None:
        return None
    facts = shared.facts
    run = RunTrace(
        facts.run_id,
        shared.path.parent,
        service=facts.service,
        sample=facts.sample,
        record_content=facts.record_content,
        current=False,
    )
    run._join(shared)
    return run


_context.inherit(_of_parent())
