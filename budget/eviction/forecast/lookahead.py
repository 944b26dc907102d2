"""The exact program over declared uses: which set leaves so that the known future costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budget.books.residents import Residents
from budget.eviction.known_order import Values, backwards
from budget.eviction.victims import Need

MOST_ENGINES = 13
REUSED_SHARE = 4
"""Tables are computed anew when a quarter of the window they were computed for is over."""


@dataclass(frozen=True, slots=True)
class LookaheadProblem:
    """One eviction on one device: engines by number (candidates, the wanted one, those to come).

    `order`: the declared uses; `worth`: load seconds that residence is worth behind the last of them.
    """

    engines: tuple[str, ...]
    sizes: tuple[int, ...]
    costs: tuple[float, ...]
    worth: tuple[float, ...]
    budget: int
    present: int
    wanted: int
    order: tuple[str, ...]

    @classmethod
    def of(
        cls, need: Need, residents: Residents, order: Sequence[str], worth: Mapping[str, float]
    ) -> LookaheadProblem | None:
        """The problem of a need on one device.

        None when it has too many engines to be exact, or when even all candidates free too little.
        """
        ((device, shortage),) = need.shortage.items()
        sizes = {c.engine_id: dict(c.bookings).get(device, 0) for c in need.candidates}
        wanted = _bytes_on(residents, need.wanted, device)
        if sum(sizes.values()) < shortage:
            return None
        budget = sum(sizes.values()) + wanted - shortage
        present = (1 << len(sizes)) - 1
        sizes[need.wanted] = wanted
        if len(sizes) > MOST_ENGINES:
            return None
        known = []
        for engine_id in order:
            engine = residents.get(engine_id)
            if engine is None or not engine.spec.options:
                continue
            if engine_id not in sizes and not engine.bookings:
                n_bytes = _bytes_on(residents, engine_id, device)
                if 0 < n_bytes <= budget:
                    if len(sizes) == MOST_ENGINES:
                        break
                    sizes[engine_id] = n_bytes
            known.append(engine_id)
        costs = tuple(residents.load_seconds(sizes))
        return cls(
            tuple(sizes),
            tuple(sizes.values()),
            costs,
            tuple(worth.get(engine_id, 0.0) for engine_id in sizes),
            budget,
            present,
            len(need.candidates),
            tuple(known),
        )


def _bytes_on(residents: Residents, engine_id: str, device: str) -> int:
    for option in residents[engine_id].spec.options:
        for name, amount in option.bookings:
            if name == device:
                return amount
    return 0


class Lookahead:
    """Solves problems, and keeps the tables of the last one for those that follow from it."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._order: tuple[str, ...] = ()
        self._budget = -1
        self._sizes: dict[str, int] = {}
        self._tables: list[Values] = []
        self._at: list[int] = []

    def victims(self, problem: LookaheadProblem) -> list[str]:
        """The engines that leave: the least cost of all declared uses, without a redundant engine."""
        position = self._position(problem)
        if position is None:
            self._solve(problem)
            position = 0
        after = self._tables[self._at[position]]
        number = self._number
        wanted = 1 << number[problem.engines[problem.wanted]]
        present = [e for i, e in enumerate(problem.engines) if problem.present >> i & 1]
        stays = np.zeros(1, dtype=np.int64)
        for engine_id in present:
            stays = np.concatenate([stays, stays | (1 << number[engine_id])])
        best = int(stays[int(np.argmin(after[stays | wanted]))])
        return self._pruned(problem, present, best)

    def _pruned(self, problem: LookaheadProblem, present: list[str], stays: int) -> list[str]:
        """The set without engines that fit beside the others; the dearest stays first."""
        size = dict(zip(problem.engines, problem.sizes, strict=True))
        cost = dict(zip(problem.engines, problem.costs, strict=True))
        leaving = [e for e in present if not stays >> self._number[e] & 1]
        room = problem.budget - problem.sizes[problem.wanted]
        room -= sum(size[e] for e in present if e not in leaving)
        for engine_id in sorted(leaving, key=lambda e: -cost[e]):
            if size[engine_id] <= room:
                leaving.remove(engine_id)
                room -= size[engine_id]
        return leaving

    def _position(self, problem: LookaheadProblem) -> int | None:
        """Where in the solved order this problem stands, or None when it must be solved anew."""
        if problem.budget != self._budget or not set(problem.engines) <= self._number.keys():
            return None
        if any(self._sizes[e] != n for e, n in zip(problem.engines, problem.sizes, strict=True)):
            return None
        for position in range(len(self._order) // REUSED_SHARE):
            rest = self._order[position:]
            if rest == problem.order[: len(rest)] and (rest or not problem.order):
                return position
        return None

    def _solve(self, problem: LookaheadProblem) -> None:
        number = {engine_id: i for i, engine_id in enumerate(problem.engines)}
        uses: list[int] = []
        at = []
        for engine_id in problem.order:
            at.append(len(uses))
            if engine_id in number and (not uses or uses[-1] != number[engine_id]):
                uses.append(number[engine_id])
        at.append(len(uses))
        final = np.zeros(1)
        for worth in problem.worth:
            final = np.concatenate([final, final - worth])
        tables = list(backwards(uses, problem.sizes, problem.costs, problem.budget, final))
        tables.reverse()
        tables.append(final)
        self._number, self._order, self._budget = number, problem.order, problem.budget
        self._sizes = dict(zip(problem.engines, problem.sizes, strict=True))
        self._tables, self._at = tables, at
