"""A run's files: its trace and its line, and the next ones of both when a trace grows too large or old."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from traces import names
from traces.chrome.file import EventSink, stem_of
from traces.chrome.view import ChromeView, view_base_ns
from traces.processes.taking_in import TakenIn
from traces.recording.broken_sinks import Problems
from traces.recording.exporters import Exporters
from traces.recording.recorder import Recorder
from traces.recording.request_lines import RequestLines
from traces.records import CounterSample, RequestRecord
from traces.runs import FILE_NAME, RunLine, append_run
from traces.span_data import SpanData
from traces.text import Value, error_text, failure_attributes

MAX_BYTES: Final = 256 * 1024 * 1024
"""Bytes of a trace after which the next one begins, unless the run says otherwise."""

TAKE_EVERY_NS: Final = 2_000_000_000
"""How often the parts of other processes are taken in while the run itself records."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What all files of a run share. `max_age_s` is None where age begins no further one."""

    run_id: str
    service: str
    directory: Path
    compress: bool
    record_content: bool
    max_bytes: int
    max_age_s: float | None
    offset_ns: int


class RunFiles:
    """The sink of a run's spans: writes the trace in files, each with a line in `runs.jsonl`.

    Args:
        settings: what all files share.
        exporters: get every span as well.
        problems: where failures go; nothing here raises for a broken file.
        started_ns: monotonic time of the run's start.
        new_id: gives out ids of spans.
    """

    def __init__(
        self,
        settings: RunSettings,
        exporters: Exporters,
        problems: Problems,
        started_ns: int,
        *,
        new_id: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._exporters = exporters
        self._problems = problems
        self.recorder = Recorder(
            self, new_id, offset_ns=settings.offset_ns, record_content=settings.record_content
        )
        self._taken: TakenIn | None = None
        self._take_at_ns = 0
        self._view = self._begin(started_ns)

    @property
    def path(self) -> Path | None:
        """The trace's file; of several the last."""
        return self._sink.path

    def span(self, span: SpanData) -> None:
        """Put a finished span on the trace and send it to the exporters."""
        self._view.add(span)
        self._exporters.send(span)

    def opened(self, owner: Hashable, epoch_ns: int) -> None:
        """A thread or a task opened a span: until it ends no other's spans are on its lane."""
        self._view.lease_lane(owner, epoch_ns)

    def counter(self, sample: CounterSample, epoch_ns: int) -> None:
        """Put a sample of a device's books on the trace."""
        self._view.counter(sample, epoch_ns)

    def request(self, record: RequestRecord) -> None:
        """Keep a request for the line."""
        self._requests.add(record)

    def expect_parts(self) -> None:
        """From now on other processes may take part in the run."""
        if self.path is not None:
            self._taken = TakenIn(self.path, stem_of(self.path), self._problems.report)

    def take_in(self, *, last: bool = True) -> None:
        """Record what other processes of the run have written."""
        if self._taken is not None:
            self._taken.take(self.recorder, self.opened, last=last)
            if last:
                for process in self._taken.processes:
                    self._view.end_leases(process)

    def flush(self) -> None:
        """Write what was gathered; begin the next file where this one is large or old enough."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._take_at_ns:
            self._take_at_ns = now_ns + TAKE_EVERY_NS
            self.take_in(last=False)
        self._view.flush()
        settings, age_s = self._settings, (now_ns - self._started_ns) / 1e9
        old = settings.max_age_s is not None and age_s >= settings.max_age_s
        if old or self._sink.written >= settings.max_bytes:
            self._problems.guard("trace file", lambda: self.close_file(now_ns, None))
            self._problems.guard("runs.jsonl", lambda: self.append_line(now_ns, None))
            self._view = self._begin(now_ns, self._view)

    def close_file(self, ended_ns: int, error: BaseException | None) -> None:
        """Finish the file with the slice of the run."""
        # A file may have begun while the run's end was under way.
        ended_ns = max(ended_ns, self._started_ns)
        attributes: dict[str, Value] = {
            names.RUN_ID: self._settings.run_id,
            names.STARTED: self._started,
            **failure_attributes(error),
        }
        if self._problems.found:
            attributes[names.PROBLEMS] = "; ".join(self._problems.found)
        offset = self._settings.offset_ns
        run = SpanData(names.RUN, 0, 0, self._started_ns + offset, ended_ns + offset, attributes)
        self._view.add(run)
        self._view.finish(run.end_ns)
        self._view.flush()
        self._sink.close(compress=self._settings.compress)

    def append_line(self, ended_ns: int, error: BaseException | None) -> None:
        """Write the file's line.

        Raises:
            OSError: it cannot be written.
        """
        settings = self._settings
        loads, evictions, load_seconds = self.recorder.take_figures()
        line = RunLine(
            run_id=self._run_id,
            service=settings.service,
            started=self._started,
            seconds=max(0, ended_ns - self._started_ns) / 1e9,
            status="ok" if error is None else "error",
            error_type=None if error is None else type(error).__name__,
            error_message=None if error is None else error_text(error),
            loads=loads,
            evictions=evictions,
            load_seconds=load_seconds,
            trace=None if self.path is None else str(self.path),
            problems=tuple(self._problems.found),
        )
        settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        requests = self._requests.take(self.recorder.load_seconds_of)
        append_run(settings.directory / FILE_NAME, line, requests)

    def _begin(self, started_ns: int, before: ChromeView | None = None) -> ChromeView:
        settings = self._settings
        self._started_ns = started_ns
        epoch_ns = started_ns + settings.offset_ns
        started = datetime.fromtimestamp(epoch_ns / 1e9, UTC)
        self._started = started.isoformat(timespec="milliseconds")
        self._sink = EventSink(settings.directory, settings.run_id, self._problems)
        # A second file is a run of its own in the list of runs, which has its name.
        first = before is None or self._sink.path is None
        self._run_id = settings.run_id if first else stem_of(self._sink.path or Path())
        self._requests = RequestLines(
            settings.directory, started_ns=started_ns, record_content=settings.record_content
        )
        self.base_ns = view_base_ns(epoch_ns)
        return ChromeView(
            self._sink.write,
            base_ns=self.base_ns,
            home=names.run_lanes(settings.service, self._run_id),
            before=before,
        )
