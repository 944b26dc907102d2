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

    __slots__ = (
        "_largest_s",
        "_lru_s",
        "_order",
        "_real_s",
        "_residents",
        "_shadow",
        "_taken",
        "following",
    )

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
        self._shadow: dict[str, Bookings] = {}
        self._order: dict[str, OrderedDict[str, None]] = {
            ledger.device: OrderedDict() for ledger in residents.books
        }
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
        bookings = self._shadow.get(engine_id)
        if bookings is not None:
            for device, _ in bookings:
                self._order[device].move_to_end(engine_id)
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
        excess = set()
        for device, amount in bookings:
            self._taken[device] += amount
            if self._taken[device] > self._residents.books[device].limit_bytes:
                excess.add(device)
        for device in sorted(excess):
            self._evict(device)
        self._shadow[engine.engine_id] = bookings
        for device, _ in bookings:
            self._order[device][engine.engine_id] = None
        self._lru_s += engine.option.load_seconds

    def _evict(self, device: str) -> None:
        """The least recently used leave until it fits; of those, the newest stay if they can."""
        missing = self._taken[device] - self._residents.books[device].limit_bytes
        leaving: list[tuple[str, int]] = []
        for engine_id in self._order[device]:
            if missing <= 0:
                break
            if not self._pinned(engine_id):
                amount = sum([n for name, n in self._shadow[engine_id] if name == device])
                leaving.append((engine_id, amount))
                missing -= amount
        for engine_id, amount in reversed(leaving):
            if missing + amount <= 0:
                missing += amount
            else:
                self._drop(engine_id)

    def _drop(self, engine_id: str) -> None:
        for device, amount in self._shadow.pop(engine_id):
            self._taken[device] -= amount
            del self._order[device][engine_id]

    def _pinned(self, engine_id: str) -> bool:
        return engine_id in self._residents and self._residents[engine_id].pinned
