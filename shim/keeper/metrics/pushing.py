"""Metrics sent to an OpenTelemetry collector, and what the log says of one that does not get them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData

from shim.keeper.shell.fault_counts import text_of
from traces.recording.exporter_logs import exporter_logs_heard, why_of

LOG = logging.getLogger("keepwarm.keeper")

FIRST_PAUSE_S: Final = 60.0
LONGEST_PAUSE_S: Final = 3600.0


class Outage:
    """What to say of tries that fail: the first at once, later ones after pauses that double; and the end.

    Args:
        what: fails, as in "metrics for http://127.0.0.1:4318".
        clock: monotonic seconds.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._tries = 0
        self._began_s = self._next_s = 0.0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, why: str) -> str | None:
        """A try failed: what to say, if anything."""
        now_s = self._clock()
        self._tries += 1
        if self._tries == 1:
            self._began_s, self._next_s = now_s, now_s + FIRST_PAUSE_S
            self._pause_s = FIRST_PAUSE_S
            return f"{self._what} cannot be sent: {why}. Said again after a minute, then less often"
        if now_s < self._next_s:
            return None
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._next_s = now_s + self._pause_s
        return f"{self._what} cannot be sent yet, {self._so_far(now_s)}: {why}"

    def worked(self) -> str | None:
        """A try worked: what to say, if anything."""
        if not self._tries:
            return None
        told = f"{self._what} are sent again, {self._so_far(self._clock())}"
        self._tries = 0
        return told

    def _so_far(self, now_s: float) -> str:
        return f"after {self._tries:,} tries in {now_s - self._began_s:.0f} s"


class PushedMetrics(OTLPMetricExporter):
    """Sends metrics to a collector, and never raises. What OpenTelemetry logs of a failure it says itself.

    Args:
        address: of the collector, without `/v1/metrics`.
    """

    def __init__(self, address: str) -> None:
        super().__init__(f"{address}/v1/metrics")
        self._outage = Outage(f"metrics for {address}")

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **more: Any
    ) -> MetricExportResult:
        """Send metrics."""
        with exporter_logs_heard() as heard:
            try:
                result = super().export(metrics_data, timeout_millis, **more)
            except Exception as error:
                heard.append(text_of(error))
                result = MetricExportResult.FAILURE
        if result is MetricExportResult.SUCCESS:
            told = self._outage.worked()
        else:
            told = self._outage.failed(why_of(heard))
        if told is not None:
            LOG.warning("%s", told)
        return result
