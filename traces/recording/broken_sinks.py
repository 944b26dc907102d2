"""What went wrong with a trace while its run went on: each broken thing is told once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from traces.text import clean

_logger = logging.getLogger("keepwarm.traces")


class Problems:
    """Collects problems of one run and logs the first of each kind as a warning. Thread-safe."""

    def __init__(self, run_id: str) -> None:
        self.found: list[str] = []
        self._run_id = run_id
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def report(self, what: str, problem: str) -> None:
        """Keep and log a problem, unless that thing was reported before."""
        with self._lock:
            if what in self._told:
                return
            self._told.add(what)
            told = clean(f"{what}: {problem}")
            self.found.append(told)
        _logger.warning("run %s goes on, its trace may be incomplete: %s", self._run_id, told)

    def guard(self, what: str, action: Callable[[], None]) -> None:
        """Do something that may fail; a failure is reported and goes no further."""
        try:
            action()
        except Exception as error:
            self.report(what, f"{type(error).__name__}: {error}")
