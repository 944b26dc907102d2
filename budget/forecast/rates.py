"""How often each engine is used: decayed counts at several time scales, per request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

SCALES = (1.0, 4.0, 16.0, 64.0)
"""Half-lives of the counts, in multiples of the usual return distance."""
SHORTEST_UNIT = 4.0
MEMORY = 0.002
"""Weight of the newest return distance in the average of their logarithms."""
REFRESH = 16
"""After so many requests the time scales follow the usual return distance."""
LIMIT = 1e200


class Rates:
    """Counts requests, not seconds: a busy hour and a quiet one look alike.

    The unit of every time scale is twice the geometric mean of how many requests pass between two uses
    of one engine, so that nothing has to be set for three engines or for a thousand. Nothing decays: the
    weight of each new request grows instead, so that a rate costs no power.
    """

    __slots__ = (
        "_growths",
        "_log_return",
        "_shares",
        "_totals",
        "_uses",
        "_weights",
        "count",
        "unit",
    )

    def __init__(self) -> None:
        self.count = 0
        self._log_return = math.log(SHORTEST_UNIT)
        self.unit = 2.0 * SHORTEST_UNIT
        """The usual number of requests until an engine is used again."""
        self._growths = _growths(self.unit)
        self._weights = (1.0,) * len(SCALES)
        self._totals = (0.0,) * len(SCALES)
        self._shares: tuple[float, ...] | None = None
        """What one unit of weighted count is of the rate, by scale; None when not asked for yet."""
        self._uses: dict[str, list[float]] = {}
        """By engine: the number of its last request, then its weighted counts by scale."""

    def used(self, engine_id: str) -> None:
        """Count one request."""
        self.count = count = self.count + 1
        g0, g1, g2, g3 = self._growths
        w0, w1, w2, w3 = self._weights
        w0, w1, w2, w3 = w0 * g0, w1 * g1, w2 * g2, w3 * g3
        t0, t1, t2, t3 = self._totals
        t0, t1, t2, t3 = t0 + w0, t1 + w1, t2 + w2, t3 + w3
        self._weights, self._totals = (w0, w1, w2, w3), (t0, t1, t2, t3)
        self._shares = None
        row = self._uses.get(engine_id)
        if row is None:
            self._uses[engine_id] = [count, w0, w1, w2, w3]
        else:
            weight = max(MEMORY, 1.0 / (10 + count))
            self._log_return += weight * (math.log(count - row[0]) - self._log_return)
            row[0] = count
            row[1] += w0
            row[2] += w1
            row[3] += w2
            row[4] += w3
        if count % REFRESH == 0:
            self._refresh()

    def _refresh(self) -> None:
        self.unit = max(SHORTEST_UNIT, 2.0 * math.exp(self._log_return))
        self._growths = _growths(self.unit)
        if self._weights[0] > LIMIT:
            self._uses = {name: self._scaled(row) for name, row in self._uses.items()}
            self._totals = (
                self._totals[0] / self._weights[0],
                self._totals[1] / self._weights[1],
                self._totals[2] / self._weights[2],
                self._totals[3] / self._weights[3],
            )
            self._weights = (1.0,) * len(SCALES)
            self._shares = None

    def _scaled(self, row: list[float]) -> list[float]:
        """Counts as if the newest request weighed 1."""
        return [row[0], *(f / w for f, w in zip(row[1:], self._weights, strict=True))]

    def rate(self, engine_id: str) -> float:
        """The share of coming requests that will be for this engine, between 0 and 1."""
        row = self._uses.get(engine_id)
        if row is None:
            return 0.0
        if self._shares is None:
            self._shares = tuple([0.25 / total for total in self._totals])
        s0, s1, s2, s3 = self._shares
        return row[1] * s0 + row[2] * s1 + row[3] * s2 + row[4] * s3

    def last(self, engine_id: str) -> float:
        """The number of an engine's last request; 0 when there was none."""
        row = self._uses.get(engine_id)
        return 0.0 if row is None else row[0]

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        totals = [t / w for t, w in zip(self._totals, self._weights, strict=True)]
        return {
            "count": self.count,
            "log_return": self._log_return,
            "totals": totals,
            "uses": {engine_id: self._scaled(row) for engine_id, row in self._uses.items()},
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        uses = {}
        for engine_id, (last, f0, f1, f2, f3) in state["uses"].items():
            uses[str(engine_id)] = [int(last), float(f0), float(f1), float(f2), float(f3)]
        t0, t1, t2, t3 = map(float, state["totals"])
        count, log_return = int(state["count"]), float(state["log_return"])
        if min(t0, t1, t2, t3) < 0.0 or any(row[0] > count for row in uses.values()):
            raise ValueError(f"totals {state['totals']} after {count} requests")
        self.count, self._log_return = count, log_return
        self._totals, self._uses = (t0, t1, t2, t3), uses
        self._weights = (1.0,) * len(SCALES)
        self._shares = None
        self._refresh()


def _growths(unit: float) -> tuple[float, ...]:
    """How much more each request weighs than the one before it, by scale."""
    return tuple(math.exp2(1.0 / (unit * scale)) for scale in SCALES)
