"""Spans to other places than the trace file, such that a broken exporter breaks nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

Report = Callable[[str, str], None]
"""Called with what is broken and how; tells each broken thing once."""

SHUTDOWN_SECONDS = 5.0


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


def add_exporters(
    provider: TracerProvider, exporters: Sequence[SpanExporter], report: Report
) -> None:
    """Send the provider's spans to `exporters` too, from a thread of their own."""
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(GuardedExporter(exporter, report)))


def shut_down(provider: TracerProvider, report: Report) -> None:
    """Export what is left; an exporter that hangs is left behind after `SHUTDOWN_SECONDS`."""
    ending = threading.Thread(target=provider.shutdown, name="keepwarm-trace-end", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS)
    if ending.is_alive():
        report("exporters", f"were not done {SHUTDOWN_SECONDS:g} s after the run's end")
