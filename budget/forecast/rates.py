"""How often each engine is used: decayed counts at several time scales, per request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SCALES = (1.0, 4.0, 16.0, 64.0)
"""Half-lives of the counts, in multiples of the usual return distance."""
LN2 = math.log(2.0)
SHORTEST_UNIT = 4.0
MEMORY = 0.002
"""Weight of the newest return distance in the average of their logarithms."""


class Rates:
    """Counts requests, not seconds: a busy hour and a quiet one look alike.

    The unit of every time scale is twice the geometric mean of how many requests pass between two uses
    of one engine, so that nothing has to be set for three engines or for a thousand.
    """

    __slots__ = ("_log_return", "_totals", "_uses", "count", "unit")

    def __init__(self) -> None:
        self.count = 0
        self._log_return = math.log(SHORTEST_UNIT)
        self.unit = 2.0 * SHORTEST_UNIT
        """The usual number of requests until an engine is used again."""
        self._totals = [0.0] * len(SCALES)
        self._uses: dict[str, tuple[int, float, float, float, float]] = {}

    def used(self, engine_id: str) -> None:
        """Count one request."""
        self.count += 1
        before = self._uses.get(engine_id)
        d3 = math.exp(-LN2 / (self.unit * SCALES[3]))
        d2 = d3**4
        d1 = d2**4
        d0 = d1**4
        totals = self._totals
        totals[0] = totals[0] * d0 + 1.0
        totals[1] = totals[1] * d1 + 1.0
        totals[2] = totals[2] * d2 + 1.0
        totals[3] = totals[3] * d3 + 1.0
        if before is None:
            self._uses[engine_id] = (self.count, 1.0, 1.0, 1.0, 1.0)
            return
        last, f0, f1, f2, f3 = before
        gap = self.count - last
        weight = max(MEMORY, 1.0 / (10 + self.count))
        self._log_return += weight * (math.log(gap) - self._log_return)
        self.unit = max(SHORTEST_UNIT, 2.0 * math.exp(self._log_return))
        self._uses[engine_id] = (
            self.count,
            f0 * d0**gap + 1.0,
            f1 * d1**gap + 1.0,
            f2 * d2**gap + 1.0,
            f3 * d3**gap + 1.0,
        )

    def rate(self, engine_id: str) -> float:
        """The share of coming requests that will be for this engine, between 0 and 1."""
        found = self._uses.get(engine_id)
        if found is None:
            return 0.0
        last, f0, f1, f2, f3 = found
        t0, t1, t2, t3 = self._totals
        # The scales are powers of 4, so each decay is the fourth root of the one before it.
        slowest = math.exp((last - self.count) * LN2 / (self.unit * SCALES[3]))
        d2 = slowest**4
        d1 = d2**4
        return 0.25 * (f0 * d1**4 / t0 + f1 * d1 / t1 + f2 * d2 / t2 + f3 * slowest / t3)

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "count": self.count,
            "log_return": self._log_return,
            "totals": list(self._totals),
            "uses": {engine_id: list(row) for engine_id, row in self._uses.items()},
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        uses = {}
        for engine_id, (last, f0, f1, f2, f3) in state["uses"].items():
            uses[str(engine_id)] = (int(last), float(f0), float(f1), float(f2), float(f3))
        totals = [float(total) for total in state["totals"]]
        if len(totals) != len(SCALES) or min(totals) < 0.0:
            raise ValueError(f"totals {totals}")
        self.count, self._log_return = int(state["count"]), float(state["log_return"])
        self.unit = max(SHORTEST_UNIT, 2.0 * math.exp(self._log_return))
        self._totals, self._uses = totals, uses
