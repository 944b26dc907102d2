"""The run on a trace that a session's calls belong to where the program opens none: `[trace] enabled`."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Final

from opentelemetry.sdk.trace.export import SpanExporter

from backends.machine.forks import renew_after_fork
from shim.config import TraceSection
from traces import RunTrace, otlp_exporter

LOG = logging.getLogger("keepwarm.client")

MOST_CALLS: Final = 10_000
"""After so many calls another run begins: a program that runs for weeks writes no endless file.

A call that is under way at that moment is in neither.
"""


class OwnRun:
    """Begins with the first call that needs it. Safe from any thread; a forked child has its own."""

    def __init__(self) -> None:
        self._run: RunTrace | None = None
        self._calls = 0
        self.forked()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the lock may be held by a thread of the parent."""
        self._lock = threading.Lock()

    def get(self, section: TraceSection) -> RunTrace:
        """The run of a call that has none, where `[trace]` of the configuration asks for one."""
        with self._lock:
            ended = self._run if self._calls >= MOST_CALLS else None
            if self._run is None or ended is not None or not self._run.active:
                self._run, self._calls = _begun(section), 0
            self._calls += 1
            run = self._run
        if ended is not None:
            ended.__exit__(None, None, None)
        return run

    def close(self) -> None:
        """End the run: its trace and its line in `runs.jsonl` are written. Idempotent."""
        with self._lock:
            run, self._run = self._run, None
        if run is not None:
            run.__exit__(None, None, None)


def _begun(section: TraceSection) -> RunTrace:
    service = Path(sys.argv[0]).name or "python"
    return configured_run(section, service, process_wide=False, current=False).__enter__()


def configured_run(
    section: TraceSection, service: str, *, process_wide: bool = True, current: bool = True
) -> RunTrace:
    """A run as `[trace]` of the configuration describes it, to be entered.

    Where the package is missing that sends its spans, a warning says so, and the run has its file only.
    """
    exporters: list[SpanExporter] = []
    if section.otlp is not None:
        try:
            exporters.append(otlp_exporter(section.otlp))
        except ModuleNotFoundError as error:
            LOG.warning("[trace] otlp is without effect. %s", error)
    return RunTrace(
        directory=section.folder,
        gzip=section.compress,
        record_content=section.content,
        service=service,
        exporters=exporters,
        sample=section.sample,
        max_bytes=section.most_bytes,
        max_age=section.most_age_s,
        process_wide=process_wide,
        current=current,
    )
