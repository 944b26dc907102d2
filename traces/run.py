"""`RunTrace`: one run, its spans, its trace file and its line in `runs.jsonl`."""

from __future__ import annotations

# Imported for the hook at fork() that it registers: a tracer provider's own one uses a thread pool
# in the child, and hangs there if it runs before the pool's lock has been made anew.
import concurrent.futures.thread  # noqa: F401
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode
from opentelemetry.trace.propagation import set_span_in_context

from traces import names
from traces.broken_sinks import Problems
from traces.chrome.file import EventSink
from traces.chrome.view import ChromeView, view_base_ns
from traces.current import RunContext, owner
from traces.exporters import add_exporters, shut_down
from traces.place import check_run_id, default_directory, new_run_id
from traces.recorder import Recorder
from traces.records import CounterSample, EvictSpan, LoadSpan, RequestRecord
from traces.runs import FILE_NAME, RunLine, append_run
from traces.text import clean, clean_attributes

_P = ParamSpec("_P")
_R = TypeVar("_R")

_parent: ContextVar[tuple[RunTrace, Context] | None] = ContextVar("keepwarm_span", default=None)


class SpanHandle:
    """An open span of a run's own work."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def set(self, **attributes: object) -> None:
        """Add attributes to the span."""
        for key, value in clean_attributes(attributes).items():
            self._span.set_attribute(key, value)


class RunTrace:
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
        process_wide: threads without a run in their context record to this run while it is the only one.
        current: make it the current run of the context that enters it. Otherwise it has only what is
            recorded through this object.

    Raises:
        ValueError: the run id cannot be a file's name.
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
        current: bool = True,
    ) -> None:
        self.run_id = new_run_id() if run_id is None else check_run_id(run_id)
        place = default_directory() if directory is None else Path(directory).expanduser()
        self.directory = place.absolute()
        self.record_content = record_content
        self.service = service
        self.process_wide = process_wide
        self._is_current = current
        self._problems = Problems(self.run_id)
        self._gzip = gzip
        self._exporters = tuple(exporters)
        self._lock = threading.RLock()
        self._finishers: list[Callable[[], None]] = []
        self._sink: EventSink | None = None
        self._state = "new"
        self._pid = os.getpid()

    @property
    def active(self) -> bool:
        """Whether the run has begun and not ended; False in a forked child."""
        return self._state == "active" and self._pid == os.getpid()

    @property
    def problems(self) -> list[str]:
        """What broke on the way, each thing once."""
        return self._problems.found

    @property
    def trace_path(self) -> Path | None:
        """The trace file; None before the run is entered and when none could be made."""
        return None if self._sink is None else self._sink.path

    @property
    def runs_path(self) -> Path:
        """The `runs.jsonl` that gets this run's line."""
        return self.directory / FILE_NAME

    @property
    def started_ns(self) -> int:
        """When the run was entered, in monotonic nanoseconds."""
        return self._started_ns

    def on_finish(self, action: Callable[[], None]) -> None:
        """Call `action` when the run is left, while it still records; its failure is a problem."""
        self._finishers.append(action)

    # -- beginning and end ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError(f"run {self.run_id} was entered before; make a new RunTrace")
        self._started_ns = time.monotonic_ns()
        self._offset_ns = time.time_ns() - self._started_ns
        self._sink = sink = EventSink(self.directory, self.run_id, self._problems.report)
        self._view = ChromeView(
            sink.write,
            base_ns=view_base_ns(self._started_ns + self._offset_ns),
            home=names.run_lanes(self.service, self.run_id),
        )
        self._start_tracer()
        self._state = "active"
        self._before = _context.enter(self) if self._is_current else None
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
        ended_ns = time.monotonic_ns()
        for finish in self._finishers:
            self._problems.guard("on_finish", finish)
        failure = None if _is_clean_exit(error) else error
        with self._lock:
            self._state = "ended"
            self._problems.guard("run span", lambda: self._end_root(failure, ended_ns))
            self._problems.guard("trace file", self._close_file)
        try:
            shut_down(self._provider, self._problems.report)
        finally:
            self._problems.guard("runs.jsonl", lambda: self._append_line(failure, ended_ns))

    def _start_tracer(self) -> None:
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource({names.SERVICE_NAME: clean(self.service), names.RUN_ID: self.run_id}),
            shutdown_on_exit=False,
        )
        if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            self._problems.report(
                "OpenTelemetry", "OTEL_SDK_DISABLED is set, so no span is recorded"
            )
        self._provider.add_span_processor(self._view)
        add_exporters(self._provider, self._exporters, self._problems.report)
        self.tracer = self._provider.get_tracer("keepwarm", schema_url=names.CONVENTIONS)
        started = datetime.fromtimestamp((self._started_ns + self._offset_ns) / 1e9, UTC)
        self._started = started.isoformat(timespec="milliseconds")
        self._root = self.tracer.start_span(
            names.RUN,
            context=Context(),
            attributes={names.RUN_ID: self.run_id, names.STARTED: self._started},
            start_time=self._started_ns + self._offset_ns,
        )
        self._root_context = set_span_in_context(self._root, Context())
        self._recorder = Recorder(
            self.tracer,
            offset_ns=self._offset_ns,
            started_ns=self._started_ns,
            record_content=self.record_content,
        )

    def _end_root(self, error: BaseException | None, ended_ns: int) -> None:
        _mark_failed(self._root, error)
        self._root.end(ended_ns + self._offset_ns)
        self._view.flush()

    def _append_line(self, error: BaseException | None, ended_ns: int) -> None:
        line = RunLine(
            run_id=self.run_id,
            service=self.service,
            started=self._started,
            seconds=(ended_ns - self._started_ns) / 1e9,
            status="ok" if error is None else "error",
            error_type=None if error is None else type(error).__name__,
            error_message=None if error is None else clean(str(error)),
            loads=self._recorder.loads,
            evictions=self._recorder.evictions,
            load_seconds=self._recorder.load_seconds,
            trace=None if self.trace_path is None else str(self.trace_path),
            problems=tuple(self.problems),
            requests=self._recorder.request_lines(),
        )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        append_run(self.runs_path, line)

    def _close_file(self) -> None:
        if self._sink is not None:
            self._sink.close(compress=self._gzip)

    # -- recording --------------------------------------------------------------------------------

    def load(self, load: LoadSpan) -> None:
        """Record a load of a model; the same load on the same device is recorded once."""
        self._record(lambda parent: self._recorder.load(load, parent), root=True)

    def evict(self, evict: EvictSpan) -> None:
        """Record an eviction; the same eviction on the same device is recorded once."""
        self._record(lambda parent: self._recorder.evict(evict, parent), root=True)

    def request(self, record: RequestRecord) -> None:
        """Record a request that has ended, well or not, under the span that is open here."""
        self._record(lambda parent: self._recorder.request(record, parent))

    def counter(self, sample: CounterSample) -> None:
        """Record the books of a device at one moment."""
        self._record(lambda _: self._view.counter(sample, sample.ns + self._offset_ns), root=True)

    def record_span(
        self,
        name: str,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """Record a span whose times (monotonic nanoseconds) are known already."""

        def write(parent: Context) -> None:
            span = self.tracer.start_span(
                clean(name),
                context=parent,
                attributes=clean_attributes(attributes or {}),
                start_time=start_ns + self._offset_ns,
            )
            span.end(max(start_ns, end_ns) + self._offset_ns)

        self._record(write)

    @contextmanager
    def span(
        self, name: str, /, start_ns: int | None = None, **attributes: object
    ) -> Iterator[SpanHandle]:
        """A span around a piece of work; requests and spans within it become its children.

        It gets a lane of its thread or task. An exception marks it as failed and goes on.
        """
        begin_ns = time.monotonic_ns() if start_ns is None else start_ns
        if not self.active:
            yield SpanHandle(INVALID_SPAN)
            return
        thread, title = owner()
        epoch_ns = begin_ns + self._offset_ns
        span = self.tracer.start_span(
            clean(name),
            context=self._parent_context(),
            attributes={
                **clean_attributes({names.THREAD: title, **attributes}),
                names.LANE: self._view.lease_lane(thread, epoch_ns),
            },
            start_time=epoch_ns,
        )
        token = _parent.set((self, set_span_in_context(span, Context())))
        try:
            yield SpanHandle(span)
        except BaseException as error:
            _mark_failed(span, None if isinstance(error, GeneratorExit) else error)
            raise
        finally:
            _reset(token)
            if self._pid == os.getpid():
                self._problems.guard("span", lambda: self._end_span(span, name, begin_ns))
                self._view.return_lane(thread)

    def carry(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """`function` as one that belongs to this run, and to the span open here, in any thread."""
        parent = _parent.get()

        @functools.wraps(function)
        def carried(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            before = _context.adopt(self)
            token = _parent.set(parent)
            try:
                return function(*args, **kwargs)
            finally:
                _reset(token)
                _context.adopt(before)

        return carried

    # -- inside -----------------------------------------------------------------------------------

    def _parent_context(self) -> Context:
        held = _parent.get()
        return held[1] if held is not None and held[0] is self else self._root_context

    def _record(self, write: Callable[[Context], None], *, root: bool = False) -> None:
        if not self.active:
            return
        parent = self._root_context if root else self._parent_context()
        self._problems.guard("recorder", lambda: self._record_locked(write, parent))

    def _record_locked(self, write: Callable[[Context], None], parent: Context) -> None:
        with self._lock:
            if not self.active:
                return
            try:
                write(parent)
            finally:
                self._view.flush()

    def _end_span(self, span: Span, name: str, begin_ns: int) -> None:
        with self._lock:
            span.end(max(begin_ns, time.monotonic_ns()) + self._offset_ns)
            if self.active:
                self._view.flush()
            else:
                self._problems.report(
                    "span", f"{name!r} ended after its run: it is not on the trace"
                )


_context: RunContext[RunTrace] = RunContext()

current_run = _context.get
"""The run that this code belongs to, or None: the whole cost of tracing when it is off.

A run follows its context into asyncio tasks. A plain thread belongs to the process's one active run,
unless several are active or it was made with `process_wide=False`; `RunTrace.carry` then takes a
function into the thread.
"""


def _mark_failed(span: Span, error: BaseException | None) -> None:
    if error is None:
        return
    span.set_attributes(
        clean_attributes({names.ERROR_TYPE: type(error).__name__, names.ERROR_MESSAGE: str(error)})
    )
    span.set_status(Status(StatusCode.ERROR, clean(str(error))))


def _is_clean_exit(error: BaseException | None) -> bool:
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def _reset(token: Token[tuple[RunTrace, Context] | None]) -> None:
    # A generator may be closed from another context than the one that it began in.
    with suppress(ValueError):
        _parent.reset(token)
