"""The guard: a shadow of LRU beside the real residents, and when to follow it."""

from __future__ import annotations

from budget.engines import Bookings, EngineRecord
from budget.forecast.shadows import Losses, Shadow
from budget.residents import Residents

RATIO = 1.01
STOP_LOADS = 3.0
RESUME_LOADS = 2.0


class Guard:
    """Keeps the forecast from ever being much worse than LRU.

    It replays every use on books of its own under LRU and adds up both costs. When the real load
    seconds pass `1.01 x LRU's + 3 x the largest load`, evictions follow LRU (whatever is not in the
    shadow leaves first, then by recency) until they are below `1.01 x + 2 x` again.

    `recency`: what losing an engine costs as LRU sees it.
    """

    __slots__ = ("_largest_s", "_lru_s", "_real_s", "_residents", "_shadow", "following")

    def __init__(self, residents: Residents, recency: Losses) -> None:
        self._residents = residents
        devices = tuple(ledger.device for ledger in residents.books)
        self._shadow = Shadow(residents, devices, recency, ordered=True)
        self._lru_s = 0.0
        self._real_s = 0.0
        self._largest_s = 0.0
        self.following = False

    def holds(self, engine_id: str) -> bool:
        """Whether LRU would have this engine resident."""
        return engine_id in self._shadow.held

    def used(self, engine_id: str) -> None:
        """A request for an engine arrived."""
        if engine_id in self._shadow.held:
            return
        engine = self._residents.get(engine_id)
        if engine is not None and (bookings := engine.whereabouts):
            self._load(engine, bookings)

    def booked(self, engine: EngineRecord) -> None:
        """A real load starts."""
        if engine.engine_id not in self._shadow.held:
            self._load(engine, engine.bookings)
        self._real_s += engine.option.load_seconds
        self._largest_s = max(self._largest_s, engine.option.load_seconds)
        loads = RESUME_LOADS if self.following else STOP_LOADS
        self.following = self._real_s > RATIO * self._lru_s + loads * self._largest_s

    def reconfigured(self) -> None:
        """Engines that are gone hold nothing."""
        self._shadow.reconfigured()

    def _load(self, engine: EngineRecord, bookings: Bookings) -> None:
        self._shadow.load(engine.engine_id, bookings)
        self._lru_s += engine.option.load_seconds
