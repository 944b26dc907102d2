"""Counters that are made of begins and ends: busy slots, requests in the queue."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Final

from traces.chrome.event_text import Events

GATHERED: Final = 512
"""Changes of one counter that are put into order before the first is written: requests are recorded at
their ends. A change that comes later than that is drawn where the counter has got to."""


class Gauge:
    """How many of something there were at each moment."""

    def __init__(self, events: Events, pid: int, name: str, what: str) -> None:
        self._events = events
        self._pid = pid
        self._name = name
        self._what = what
        self._changes: list[tuple[int, int]] = []
        self._value = 0
        self._at = 0

    def add(self, start: int, end: int) -> None:
        """One more from `start` to `end`."""
        heappush(self._changes, (start, 1))
        heappush(self._changes, (end, -1))
        if len(self._changes) > GATHERED:
            self._write(GATHERED // 2)

    def finish(self) -> None:
        """Write what is left."""
        self._write(0)

    def _write(self, left: int) -> None:
        while len(self._changes) > left:
            ns, change = heappop(self._changes)
            self._value += change
            self._at = max(self._at, ns)
            if not self._changes or self._changes[0][0] > ns:
                value = max(0, self._value)
                self._events.value(self._name, self._pid, self._at, self._what, value)
