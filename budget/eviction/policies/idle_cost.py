"""Idle time over load time: what has been idle for long against what it takes to come back."""

from __future__ import annotations

from collections.abc import Sequence

from budget.books.engines import EngineRecord
from budget.eviction.policies.eviction_policy import Stateless

SHORTEST_IDLE_S = 1e-3


class IdleCost(Stateless):
    """An engine that loads ten times as fast leaves after a tenth of the idle time."""

    name = "idle-cost"

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """Load seconds over idle seconds."""
        return [
            engine.option.load_seconds / max(SHORTEST_IDLE_S, now - engine.last_used)
            for engine in engines
        ]
