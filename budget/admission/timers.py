"""When the core wants to be woken."""

from __future__ import annotations

import heapq


class Timers:
    """A set of times; only the earliest needs a real timer."""

    __slots__ = ("_armed_at", "_heap", "_known")

    def __init__(self) -> None:
        self._heap: list[float] = []
        self._known: set[float] = set()
        self._armed_at: float | None = None

    def wake_at(self, at: float) -> None:
        """Ask to be woken at a time; asking twice is asking once."""
        if at not in self._known:
            self._known.add(at)
            heapq.heappush(self._heap, at)

    def clear(self) -> None:
        """Forget every time, and that a timer is set."""
        self._heap, self._known, self._armed_at = [], set(), None

    def passed(self, now: float) -> None:
        """Forget every time up to now: the timer has rung."""
        while self._heap and self._heap[0] <= now:
            self._known.discard(heapq.heappop(self._heap))
        self._armed_at = None

    def to_arm(self) -> float | None:
        """The time for which a timer must be set now, or None when the one that is set will do."""
        if not self._heap or (self._armed_at is not None and self._armed_at <= self._heap[0]):
            return None
        self._armed_at = self._heap[0]
        return self._armed_at
