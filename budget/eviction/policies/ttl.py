"""Time to live: the engine whose keep_alive ends first leaves first, as in Ollama."""

from __future__ import annotations

from collections.abc import Sequence

from budget.books.engines import NO_TIMEOUT, EngineRecord
from budget.eviction.policies.eviction_policy import Stateless

USUAL_TTL_S = 300.0
"""Ollama's keep_alive, taken for engines that have none of their own."""


class Ttl(Stateless):
    """The time-out as a rank. The time-outs themselves are each model's `keep_alive`."""

    name = "ttl"

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """Seconds of keep_alive left; between 1 and 0 and falling for an engine that has passed it."""
        left_s = [engine.last_used + _ttl_s(engine) - now for engine in engines]
        return [1.0 + left if left >= 0.0 else 1.0 / (1.0 - left) for left in left_s]


def _ttl_s(engine: EngineRecord) -> float:
    return USUAL_TTL_S if engine.keep_alive_s == NO_TIMEOUT else engine.keep_alive_s
