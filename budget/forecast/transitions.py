"""What usually comes after what: learned successors of every engine, discounted by distance."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

MOST_SUCCESSORS = 32
KEPT_SUCCESSORS = 24
"""So many are left when there are more than that: the weakest are sought seldom."""
CONTEXTS = 8
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

    `weight`: of its newest visit; `visits`: of all of them; `count`: the newest one's request.
    """

    __slots__ = ("count", "successors", "visits", "weight")

    def __init__(self, weight: float, visits: float, successors: dict[str, float]) -> None:
        self.weight, self.visits, self.successors = weight, visits, successors
        self.count = 0

    def visited(self, count: int) -> None:
        """One more visit."""
        self.count = count
        self.weight *= GROWTH
        self.visits += self.weight
        if self.weight > LIMIT:
            self.successors = {k: v / self.weight for k, v in self.successors.items()}
            self.visits, self.weight = self.visits / self.weight, 1.0

    def trim(self) -> None:
        """Keep the strongest, and room for some more."""
        kept = sorted(self.successors.items(), key=itemgetter(1), reverse=True)[:KEPT_SUCCESSORS]
        self.successors = dict(kept)


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
        self._recent: list[tuple[str, Context]] = []
        """The last different engines, the latest first."""
        self._powers: list[float] = []
        self._current: Context | None = None
        self._prior = 0.0
        self._scale = 0.0

    def discounted(self, discount: float) -> None:
        """Take another discount from now on; must be called before the first use."""
        power, powers = 1.0, []
        for _ in range(FURTHEST + 1):
            powers.append(power)
            power *= discount
        self._powers = powers

    def used(self, engine_id: str) -> None:
        """Credit this use to every engine used since the last time, and make it the context."""
        self._count = count = self._count + 1
        recent, powers = self._recent, self._powers
        mine: tuple[str, Context] | None = None
        for entry in recent:
            name, context = entry
            distance = count - context.count
            if distance <= FURTHEST:
                credit = context.weight * powers[distance]
                row = context.successors
                if engine_id in row:
                    row[engine_id] += credit
                else:
                    row[engine_id] = credit
                    if len(row) > MOST_SUCCESSORS:
                        context.trim()
            if name == engine_id:
                mine = entry
                break
        if mine is None:
            found = self._contexts.get(engine_id)
            if found is None:
                found = self._contexts[engine_id] = Context(1.0, 0.0, {})
            mine = (engine_id, found)
            if len(recent) == CONTEXTS:
                recent.pop()
            recent.insert(0, mine)
        elif recent[0] is not mine:
            recent.remove(mine)
            recent.insert(0, mine)
        self._enter(mine[1])

    def _enter(self, context: Context) -> None:
        """The visit that begins now has no outcome yet: it weighs in what follows, not before."""
        context.visited(self._count)
        self._current = context
        self._prior = PRIOR * context.weight
        self._scale = 1.0 / (context.visits - context.weight + self._prior)

    def expectation(self, engine_id: str, otherwise: float) -> float:
        """E[discount**d] for the first use of this engine, d requests after the current one.

        `otherwise`: what is expected without knowing the context; it counts as a few visits.
        """
        if self._current is None:
            return otherwise
        return (
            self._current.successors.get(engine_id, 0.0) + self._prior * otherwise
        ) * self._scale

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
            weight, total = map(float, found["visits"])
            successors = {str(k): float(v) for k, v in found["successors"].items()}
            if len(successors) > MOST_SUCCESSORS or weight <= 0.0 or total < 0.0:
                raise ValueError(f"{len(successors)} successors with weight {weight}")
            contexts[str(name)] = Context(weight, total, successors)
        self._contexts = contexts
        self._recent.clear()
        self._current = None
