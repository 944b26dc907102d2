"""The guard: a shadow of LRU beside the real residents, and when to follow it."""

from __future__ import annotations

from collections import OrderedDict

from budget.engines import Bookings, EngineRecord
from budget.residents import Residents

RATIO = 1.01
STOP_LOADS = 3.0
RESUME_LOADS = 2.0


class Guard:
    """Keeps the forecast from ever being much worse than LRU.

    It replays every use on books of its own under LRU and adds up both costs. When the real load
    seconds pass `1.01 x LRU's + 3 x the largest load`, evictions follow LRU (whatever is not in the
    shadow leaves first, then by recency) until they are below `1.01 x + 2 x` again.
    """

    __slots__ = ("_largest_s", "_lru_s", "_real_s", "_residents", "_shadow", "_taken", "following")

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._shadow: OrderedDict[str, Bookings] = OrderedDict()
        self._taken = {ledger.device: 0 for ledger in residents.books}
        self._lru_s = 0.0
        self._real_s = 0.0
        self._largest_s = 0.0
        self.following = False

    def holds(self, engine_id: str) -> bool:
        """Whether LRU would have this engine resident."""
        return engine_id in self._shadow

    def used(self, engine_id: str) -> None:
        """A request for an engine arrived."""
        if engine_id in self._shadow:
            self._shadow.move_to_end(engine_id)
            return
        if engine_id not in self._residents:
            return
        engine = self._residents[engine_id]
        if engine.bookings:
            self._load(engine, engine.bookings)
        elif len(engine.spec.options) == 1:
            self._load(engine, engine.spec.options[0].bookings)

    def booked(self, engine: EngineRecord) -> None:
        """A real load starts."""
        if engine.engine_id not in self._shadow:
            self._load(engine, engine.bookings)
        self._real_s += engine.option.load_seconds
        self._largest_s = max(self._largest_s, engine.option.load_seconds)
        loads = RESUME_LOADS if self.following else STOP_LOADS
        self.following = self._real_s > RATIO * self._lru_s + loads * self._largest_s

    def _load(self, engine: EngineRecord, bookings: Bookings) -> None:
        excess = {}
        for device, amount in bookings:
            self._taken[device] += amount
            over = self._taken[device] - self._residents.books[device].limit_bytes
            if over > 0:
                excess[device] = over
        if excess:
            self._evict(excess)
        self._shadow[engine.engine_id] = bookings
        self._lru_s += engine.option.load_seconds

    def _evict(self, excess: dict[str, int]) -> None:
        """The least recently used leave until it fits; of those, the newest stay if they can."""
        leaving: list[str] = []
        left = dict(excess)
        for engine_id, bookings in self._shadow.items():
            if any(device in left for device, _ in bookings) and not self._pinned(engine_id):
                leaving.append(engine_id)
                for device, amount in bookings:
                    if device in left:
                        left[device] -= amount
                if all(amount <= 0 for amount in left.values()):
                    break
        for engine_id in reversed(leaving):
            bookings = self._shadow[engine_id]
            if all(device not in left or left[device] + n <= 0 for device, n in bookings):
                for device, amount in bookings:
                    if device in left:
                        left[device] += amount
                continue
            del self._shadow[engine_id]
            for device, amount in bookings:
                self._taken[device] -= amount

    def _pinned(self, engine_id: str) -> bool:
        return engine_id in self._residents and self._residents[engine_id].pinned
