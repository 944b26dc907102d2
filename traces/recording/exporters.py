"""Spans to other places than the trace file, such that a broken exporter breaks nothing else."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Sequence
from sys import getsizeof
from typing import Final

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from traces import names
from traces.recording.broken_sinks import Problems
from traces.recording.exporter_logs import exporter_logs_heard, why_of
from traces.span_data import SpanData
from traces.text import clean

SHUTDOWN_SECONDS = 5.0
MOST_WAITING = 65_536
"""Spans that may wait for an exporter. More are dropped and counted."""
MOST_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of these spans."""

_BATCH = 512
_SCOPE = InstrumentationScope("keepwarm", schema_url=names.CONVENTIONS)
_WELL = Status()
_TOO_SLOW: Final = "were dropped: it takes them more slowly than they come"


class GuardedExporter(SpanExporter):
    """Passes spans on to an exporter; a failure is reported and goes no further.

    It knows how many spans wait: one thread announces them, and another one exports them.
    """

    def __init__(self, exporter: SpanExporter, problems: Problems) -> None:
        self._exporter = exporter
        self._problems = problems
        self._name = f"exporter {type(exporter).__name__}"
        # Each of these pairs is changed in one thread only.
        self._came, self._came_bytes = 0, 0
        self._went, self._went_bytes = 0, 0

    def has_room(self, n_bytes: int) -> bool:
        """Whether one more span may wait, of so many bytes; it is counted either way."""
        full = self._came - self._went >= MOST_WAITING
        if full or self._came_bytes - self._went_bytes + n_bytes > MOST_WAITING_BYTES:
            self._problems.count(f"spans for {self._name}", 1, _TOO_SLOW)
            return False
        self._came, self._came_bytes = self._came + 1, self._came_bytes + n_bytes
        return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export `spans`; never raises."""
        with exporter_logs_heard() as heard:
            try:
                result = self._exporter.export(spans)
            except Exception as error:
                heard.append(f"{type(error).__name__}: {error}")
                result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._problems.count(self._name, len(spans), f"spans were not taken: {why_of(heard)}")
        self._went += len(spans)
        self._went_bytes += sum(map(_bytes_of, spans))
        return result

    def shutdown(self) -> None:
        """Shut the exporter down; never raises."""
        self._problems.guard(self._name, self._exporter.shutdown)


class Exporters:
    """Sends finished spans to OpenTelemetry exporters, to each from a thread of its own.

    Args:
        exporters: get every span of the run; without any, nothing is built.
        service: `service.name` of the spans.
        run_id: an attribute of their resource.
        problems: where failures go, and how many spans were dropped.
    """

    def __init__(
        self, exporters: Sequence[SpanExporter], problems: Problems, *, service: str, run_id: str
    ) -> None:
        self._problems = problems
        if exporters and os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            problems.report("OpenTelemetry", "OTEL_SDK_DISABLED is set, so no exporter gets a span")
            exporters = ()
        self._guards = [GuardedExporter(exporter, problems) for exporter in exporters]
        self._processors = [
            BatchSpanProcessor(guard, max_queue_size=MOST_WAITING, max_export_batch_size=_BATCH)
            for guard in self._guards
        ]
        self._resource = Resource({names.SERVICE_NAME: clean(service), names.RUN_ID: run_id})
        self._trace_id = secrets.randbits(128) or 1

    def send(self, span: SpanData) -> None:
        """Hand a span to every exporter's thread."""
        if not self._processors:
            return
        readable = self._readable(span)
        n_bytes = _bytes_of(readable)
        for guard, processor in zip(self._guards, self._processors, strict=True):
            if guard.has_room(n_bytes):
                processor.on_end(readable)

    def shut_down(self) -> None:
        """Export what is left; an exporter that hangs is left behind after `SHUTDOWN_SECONDS`."""
        endings = [
            threading.Thread(target=processor.shutdown, name="keepwarm-trace-end", daemon=True)
            for processor in self._processors
        ]
        for ending in endings:
            ending.start()
        until = time.monotonic() + SHUTDOWN_SECONDS
        for ending in endings:
            ending.join(max(0.0, until - time.monotonic()))
        if any(ending.is_alive() for ending in endings):
            self._problems.report(
                "exporters", f"were not done {SHUTDOWN_SECONDS:g} s after the run's end"
            )

    def _readable(self, span: SpanData) -> ReadableSpan:
        granted = span.granted_ns
        return ReadableSpan(
            span.name,
            self._context(span.span_id),
            self._context(span.parent_id) if span.parent_id else None,
            self._resource,
            span.attributes,
            () if granted is None else (Event(names.GRANTED, timestamp=granted),),
            tuple(Link(self._context(linked)) for linked in span.links),
            status=_WELL if span.failure is None else Status(StatusCode.ERROR, span.failure),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )

    def _context(self, span_id: int) -> SpanContext:
        return SpanContext(
            self._trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )


def _bytes_of(span: ReadableSpan) -> int:
    attributes = span.attributes or {}
    return sum(map(getsizeof, (span.name, *attributes, *attributes.values())))
