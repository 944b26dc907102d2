"""What usually comes after what: learned successors of every engine, discounted by distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, repeat
from operator import mul
from typing import Any

from budget.eviction.forecast.figures import figure

MOST_SUCCESSORS = 32
KEPT_SUCCESSORS = 16
"""So many are left when there are more than that: the weakest are sought seldom."""
CONTEXTS = 4
"""How many of the last different engines a use is credited to."""
FURTHEST = 64
"""Requests after which a use is credited no more."""
GROWTH = 1.005
"""Each visit weighs this much more than the one before it: 140 visits halve what came before."""
LIMIT = 1e12
PRIOR = 4.0
"""Visits' worth of belief in what is expected without knowing the context."""


class Context:
    """What followed one engine: the discounted first uses of its successors, and out of how much.

    `weight`: of its newest visit; `visits`: of all of them.
    """

    __slots__ = ("successors", "visits", "weight")

    def __init__(self, weight: float, visits: float, successors: dict[str, float]) -> None:
        self.weight, self.visits, self.successors = weight, visits, successors

    def visited(self) -> None:
        """One more visit."""
        self.weight *= GROWTH
        self.visits += self.weight
        if self.weight > LIMIT:
            for engine_id in self.successors:
                self.successors[engine_id] /= self.weight
            self.visits, self.weight = self.visits / self.weight, 1.0


_Visit = tuple[str, dict[str, float], float, int]
"""Of which engine, its context's successors, what it weighs, and the number of its request."""


class Transitions:
    """For every engine, the discounted expectation of each successor's first use after it.

    After a use of x, the first use of y at distance d (in requests) adds `discount**d` to (x, y): a
    sparse first-visit successor representation. Source: Dayan, "Improving generalization for temporal
    difference learning: the successor representation", 1993.
    """

    __slots__ = ("_contexts", "_count", "_current", "_powers", "_prior", "_recent", "_scale")

    def __init__(self) -> None:
        self._count = 0
        self._contexts: dict[str, Context] = {}
        self._recent: list[_Visit] = []
        """The newest visits of the last different engines, the latest first."""
        self._powers: list[float] = []
        self._current: dict[str, float] | None = None
        """The successors of the context that all expectations are for."""
        self._prior = 0.0
        self._scale = 0.0

    def discounted(self, discount: float) -> None:
        """Take another discount from now on; must be called before the first use."""
        self._powers = [*accumulate(repeat(discount, FURTHEST), mul, initial=1.0)]

    def learn(self, engine_ids: Sequence[str]) -> None:
        """Credit each use to the engines used since the last time, and make it the context."""
        count, recent, contexts, powers = self._count, self._recent, self._contexts, self._powers
        context: Context | None = None
        for engine_id in engine_ids:
            count += 1
            while recent and count - recent[-1][3] > FURTHEST:
                recent.pop()
            place = CONTEXTS - 1
            for at, (name, row, weight, number) in enumerate(recent):
                credit = row.get(engine_id)
                if credit is not None:
                    row[engine_id] = credit + weight * powers[count - number]
                else:
                    row[engine_id] = weight * powers[count - number]
                    if len(row) > MOST_SUCCESSORS:
                        _trim(row)
                if name == engine_id:
                    place = at
                    break
            del recent[place : place + 1]
            context = contexts.get(engine_id)
            if context is None:
                context = contexts[engine_id] = Context(1.0, 0.0, {})
            context.visited()
            recent.insert(0, (engine_id, context.successors, context.weight, count))
        self._count = count
        if context is not None:
            self._enter(context)

    def renamed(self, before: str, after: str) -> None:
        """An engine goes by another name, as a context and as a successor."""
        context = self._contexts.pop(before, None)
        if context is not None:
            self._contexts.setdefault(after, context)
        for known in self._contexts.values():
            credit = known.successors.pop(before, None)
            if credit is not None:
                known.successors[after] = credit + known.successors.get(after, 0.0)
        self._recent = [visit for visit in self._recent if visit[0] not in (before, after)]

    def _enter(self, context: Context) -> None:
        """The visit that begins now has no outcome yet: it weighs in what follows, not before."""
        self._current = context.successors
        self._prior = PRIOR * context.weight
        self._scale = 1.0 / (context.visits - context.weight + self._prior)

    def expectation(self, engine_id: str, otherwise: float) -> float:
        """E[discount**d] for the first use of this engine, d requests after the current one.

        `otherwise`: what is expected without knowing the context; it counts as a few visits.
        """
        if self._current is None:
            return otherwise
        return (self._current.get(engine_id, 0.0) + self._prior * otherwise) * self._scale

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable; the context is not kept."""
        return {
            "rows": {
                name: {
                    "visits": [context.weight, context.visits],
                    "successors": dict(context.successors),
                }
                for name, context in self._contexts.items()
            }
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        contexts = {}
        for name, found in state["rows"].items():
            weight, total = found["visits"]
            weight, total = figure(weight, 0.5, 2.0 * LIMIT), figure(total)
            successors = {str(k): figure(v) for k, v in found["successors"].items()}
            if len(successors) > MOST_SUCCESSORS:
                raise ValueError(f"{len(successors)} successors")
            contexts[str(name)] = Context(weight, total, successors)
        self._contexts = contexts
        self._recent.clear()
        self._current = None


def _trim(row: dict[str, float]) -> None:
    """Keep the strongest, and room for some more."""
    least = sorted(row.values(), reverse=True)[KEPT_SUCCESSORS - 1]
    for engine_id in [engine_id for engine_id, value in row.items() if value < least]:
        del row[engine_id]
