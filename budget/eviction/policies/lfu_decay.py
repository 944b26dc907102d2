"""Decayed frequency x reload seconds / bytes: what a byte of this engine earns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from budget.books.engines import EngineRecord
from budget.eviction.policies.eviction_policy import Stateless

HALF_LIFE_S = 3600.0


class LfuDecay(Stateless):
    """Uses count half after an hour. The densest engines stay, as in GreedyDual-Size-Frequency.

    Source: Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency
    Caching Policy", 1998, with decay in the place of ageing.
    """

    name = "lfu-decay"

    def __init__(self) -> None:
        self._uses: dict[str, tuple[float, float]] = {}

    def used(self, engine_id: str, now: float) -> None:
        """Count a use of the engine."""
        self._uses[engine_id] = (self._frequency(engine_id, now) + 1.0, now)

    def reconfigured(self, successors: Mapping[str, str]) -> None:
        """The uses of an engine count for the one that runs its model now."""
        for before, after in successors.items():
            if before in self._uses:
                self._uses.setdefault(after, self._uses.pop(before))

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """Decayed uses x load seconds / bytes."""
        return [
            self._frequency(engine.engine_id, now) * engine.option.load_seconds / _n_bytes(engine)
            for engine in engines
        ]

    def _frequency(self, engine_id: str, now: float) -> float:
        uses, at = self._uses.get(engine_id, (0.0, now))
        return uses * math.exp2((at - now) / HALF_LIFE_S)


def _n_bytes(engine: EngineRecord) -> int:
    return max(1, sum(amount for _, amount in engine.bookings))
