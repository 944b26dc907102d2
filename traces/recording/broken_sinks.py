"""What went wrong with a trace while its run went on: each broken thing is told once."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

from traces.text import clean

_logger = logging.getLogger("keepwarm.traces")


class Problems:
    """Collects problems of one run and logs the first of each kind as a warning. Thread-safe."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._told: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def found(self) -> list[str]:
        """All that broke, each thing once."""
        return list(self._told.values())

    def report(self, what: str, problem: str) -> None:
        """Keep and log a problem, unless that thing was reported before."""
        with self._lock:
            if what in self._told:
                return
            told = self._told[what] = clean(f"{what}: {problem}")
        self._log(told)

    def count(self, what: str, number: int, problem: str) -> None:
        """Keep a problem with how often it occurred in all, if at all; the first time is logged."""
        if not number:
            return
        with self._lock:
            first = what not in self._told
            total = self._counts[what] = self._counts.get(what, 0) + number
            told = self._told[what] = clean(f"{what}: {total:,} {problem}")
        if first:
            self._log(told)

    def guard(self, what: str, action: Callable[[], None]) -> None:
        """Do something that may fail; a failure is reported and goes no further."""
        try:
            action()
        except Exception as error:
            self.report(what, f"{type(error).__name__}: {error}")

    def _log(self, told: str) -> None:
        _logger.warning("run %s goes on, its trace may be incomplete: %s", self._run_id, told)


class Tally:
    """Counts in any thread without a lock: nothing comes between in one step of an iterator."""

    def __init__(self) -> None:
        self.add = itertools.count().__next__
        """Count one more."""
        self._seen = 0

    def take(self) -> int:
        """How many there were since the last time. In one thread at a time."""
        reached = self.add()
        new, self._seen = reached - self._seen, reached + 1
        return new
