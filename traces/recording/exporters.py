"""Spans to other places than the trace file, such that a broken exporter breaks nothing else."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from traces import names
from traces.span_data import SpanData
from traces.text import clean

Report = Callable[[str, str], None]
"""Called with what is broken and how; tells each broken thing once."""

SHUTDOWN_SECONDS = 5.0
MOST_WAITING = 65_536
"""Spans that may wait for an exporter."""

_BATCH = 512
_SCOPE = InstrumentationScope("keepwarm", schema_url=names.CONVENTIONS)
_WELL = Status()


class GuardedExporter(SpanExporter):
    """Passes spans on to an exporter; a failure is reported and goes no further."""

    def __init__(self, exporter: SpanExporter, report: Report) -> None:
        self._exporter = exporter
        self._report = report
        self._name = f"exporter {type(exporter).__name__}"

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export `spans`; never raises."""
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._report(self._name, f"{type(error).__name__}: {error}")
            return SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._report(self._name, f"did not take {len(spans)} spans")
        return result

    def shutdown(self) -> None:
        """Shut the exporter down; never raises."""
        try:
            self._exporter.shutdown()
        except Exception as error:
            self._report(self._name, f"{type(error).__name__}: {error}")


class Exporters:
    """Sends finished spans to OpenTelemetry exporters, to each from a thread of its own.

    Args:
        exporters: get every span of the run; without any, nothing is built.
        service: `service.name` of the spans.
        run_id: an attribute of their resource.
        report: called with what is broken and how.
    """

    def __init__(
        self, exporters: Sequence[SpanExporter], *, service: str, run_id: str, report: Report
    ) -> None:
        self._report = report
        if exporters and os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
            report("OpenTelemetry", "OTEL_SDK_DISABLED is set, so no exporter gets a span")
            exporters = ()
        self._processors = [
            BatchSpanProcessor(
                GuardedExporter(exporter, report),
                max_queue_size=MOST_WAITING,
                max_export_batch_size=_BATCH,
            )
            for exporter in exporters
        ]
        self._resource = Resource({names.SERVICE_NAME: clean(service), names.RUN_ID: run_id})
        self._trace_id = secrets.randbits(128) or 1

    def send(self, span: SpanData) -> None:
        """Hand a span to every exporter's thread."""
        if not self._processors:
            return
        readable = self._readable(span)
        for processor in self._processors:
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
            self._report("exporters", f"were not done {SHUTDOWN_SECONDS:g} s after the run's end")

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
