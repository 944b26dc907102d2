"""Furthest next use: the simulator's yardstick, which knows the whole future."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from budget.books.engines import EngineRecord
from budget.eviction.policies.eviction_policy import Stateless

NEVER = 1e12


class Belady(Stateless):
    """Takes the whole sequence of uses and counts along.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", 1966. It is
    not optimal here, because engines differ in bytes and load seconds.
    """

    name = "belady"

    def __init__(self, sequence: Sequence[str]) -> None:
        self._count = 0
        self._uses: dict[str, list[int]] = {}
        for position, engine_id in enumerate(sequence, start=1):
            self._uses.setdefault(engine_id, []).append(position)

    def used(self, engine_id: str, now: float) -> None:
        """One step on in the sequence."""
        self._count += 1

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """1 over the number of uses until the next one."""
        return [self._loss(engine.engine_id) for engine in engines]

    def _loss(self, engine_id: str) -> float:
        positions = self._uses.get(engine_id, [])
        index = bisect_right(positions, self._count)
        if index == len(positions):
            return 1.0 / NEVER
        return 1.0 / (positions[index] - self._count)
