"""What usually comes after what: learned successors of every engine, discounted by distance."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice
from typing import Any

MOST_SUCCESSORS = 32
CONTEXTS = 8
"""How many of the last different engines a use is credited to."""
GROWTH = 1.005
"""Each visit weighs this much more than the one before it: 140 visits halve what came before."""
LIMIT = 1e12
PRIOR = 4.0
"""Visits' worth of belief in what is expected without knowing the context."""


class Transitions:
    """For every engine, the discounted expectation of each successor's first use after it.

    After a use of x, the first use of y at distance d (in requests) adds `discount**d` to (x, y): a
    sparse first-visit successor representation. Source: Dayan, "Improving generalization for temporal
    difference learning: the successor representation", 1993.
    """

    __slots__ = ("_count", "_recent", "_rows", "_visits", "current")

    def __init__(self) -> None:
        self._count = 0
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._rows: dict[str, dict[str, float]] = {}
        self._visits: dict[str, tuple[float, float]] = {}
        self.current: str | None = None

    def used(self, engine_id: str, discount: float) -> None:
        """Credit this use to every engine used since the last time, and make it the context."""
        self._count += 1
        recent, visits = self._recent, self._visits
        for context in islice(reversed(recent), CONTEXTS):
            credit = visits[context][0] * discount ** (self._count - recent[context])
            row = self._rows[context]
            if engine_id in row:
                row[engine_id] += credit
            else:
                row[engine_id] = credit
                if len(row) > MOST_SUCCESSORS:
                    del row[min(row, key=row.__getitem__)]
            if context == engine_id:
                break
        self._visit(engine_id)
        self._recent[engine_id] = self._count
        self._recent.move_to_end(engine_id)
        if len(self._recent) > 2 * CONTEXTS:
            self._recent.popitem(last=False)
        self.current = engine_id

    def _visit(self, engine_id: str) -> None:
        weight, visits = self._visits.get(engine_id, (1.0, 0.0))
        row = self._rows.setdefault(engine_id, {})
        weight *= GROWTH
        visits += weight
        if weight > LIMIT:
            for successor in row:
                row[successor] /= weight
            weight, visits = 1.0, visits / weight
        self._visits[engine_id] = (weight, visits)

    def expectation(self, engine_id: str, otherwise: float) -> float:
        """E[discount**d] for the first use of this engine, d requests after the current one.

        `otherwise`: what is expected without knowing the context; it counts as a few visits.
        """
        if self.current is None:
            return otherwise
        weight, visits = self._visits[self.current]
        seen = self._rows[self.current].get(engine_id, 0.0)
        prior = PRIOR * weight
        return (seen + prior * otherwise) / (visits + prior)

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable; the context is not kept."""
        return {
            "rows": {
                name: {"visits": list(self._visits[name]), "successors": dict(row)}
                for name, row in self._rows.items()
            }
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        rows, visits = {}, {}
        for name, found in state["rows"].items():
            weight, total = found["visits"]
            visits[str(name)] = (float(weight), float(total))
            successors = {str(k): float(v) for k, v in found["successors"].items()}
            if len(successors) > MOST_SUCCESSORS or float(weight) <= 0.0:
                raise ValueError(f"{len(successors)} successors with weight {weight}")
            rows[str(name)] = successors
        self._rows, self._visits = rows, visits
        self._recent.clear()
        self.current = None
