"""Least recently used: the engine that has been idle longest leaves first."""

from __future__ import annotations

from collections.abc import Sequence

from budget.books.engines import EngineRecord
from budget.eviction.policies.eviction_policy import Stateless


class Lru(Stateless):
    """Recency alone."""

    name = "lru"

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """1 for an engine used just now, falling to 0 with the seconds since."""
        return [1.0 / (1.0 + max(0.0, now - engine.last_used)) for engine in engines]
