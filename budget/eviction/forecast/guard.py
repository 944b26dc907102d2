"""The guard: what was really loaded beside what LRU would have loaded, and when to follow LRU."""

from __future__ import annotations

RATIO = 1.01
STOP_LOADS = 3.0
RESUME_LOADS = 2.0


class Guard:
    """Keeps the forecast from ever being much worse than LRU.

    When the real load seconds pass `1.01 x LRU's + 3 x the largest load`, evictions follow LRU
    (engines that LRU would not have resident leave first, then by recency) until they are below
    `1.01 x + 2 x` again.
    """

    __slots__ = ("_largest_s", "_real_s", "following")

    def __init__(self) -> None:
        self._real_s = 0.0
        self._largest_s = 0.0
        self.following = False

    def booked(self, load_seconds: float, lru_s: float) -> None:
        """A real load starts; `lru_s` is what LRU has loaded by now, this load included."""
        self._real_s += load_seconds
        self._largest_s = max(self._largest_s, load_seconds)
        loads = RESUME_LOADS if self.following else STOP_LOADS
        self.following = self._real_s > RATIO * lru_s + loads * self._largest_s
