"""How often each engine is used: decayed counts at several time scales, per request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, exp2, log
from operator import add
from typing import Any, Final

from budget.eviction.forecast.figures import figure

SCALES = (1.0, 4.0, 16.0, 64.0)
"""Half-lives of the counts, in multiples of the usual return distance."""
SHORTEST_UNIT = 4.0
MEMORY = 0.002
"""Weight of the newest return distance in the average of their logarithms."""
WELL_KNOWN = round(1.0 / MEMORY) - 10
"""Up to so many requests every return distance counts as one of all that were seen."""
LIMIT = 1e200
LONGEST_RETURN = 24.0
"""The most that the mean logarithm of a return distance can be: growths above that are 1 to a float."""
NOTHING: Final = (0.0, 0.0, 0.0, 0.0, 0.0)
"""The row of an engine that was never used."""


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
        self._log_return = log(SHORTEST_UNIT)
        self.unit = 2.0 * SHORTEST_UNIT
        """The usual number of requests until an engine is used again."""
        self._growths = _growths(self.unit)
        self._weights = (1.0,) * len(SCALES)
        self._totals = (0.0,) * len(SCALES)
        self._shares: Sequence[float] | None = None
        """What one unit of weighted count is of the rate, by scale; None when not asked for yet."""
        self._uses: dict[str, list[float]] = {}
        """By engine: the number of its last request, then its weighted counts by scale."""

    def learn(self, engine_ids: Sequence[str]) -> None:
        """Count requests, in order."""
        count, log_return = self.count, self._log_return
        (g0, g1, g2, g3), (w0, w1, w2, w3) = self._growths, self._weights
        b0, b1, b2, b3 = w0, w1, w2, w3
        uses = self._uses
        for engine_id in engine_ids:
            count += 1
            w0, w1, w2, w3 = w0 * g0, w1 * g1, w2 * g2, w3 * g3
            row = uses.get(engine_id)
            if row is None:
                uses[engine_id] = [count, w0, w1, w2, w3]
                continue
            weight = MEMORY if count > WELL_KNOWN else 1.0 / (10 + count)
            log_return += weight * (log(count - row[0]) - log_return)
            row[0] = count
            row[1] += w0
            row[2] += w1
            row[3] += w2
            row[4] += w3
        self.count, self._log_return = count, log_return
        self._weights = (w0, w1, w2, w3)
        # The sum of a geometric series, without adding every term.
        t0, t1, t2, t3 = self._totals
        self._totals = (
            t0 + (w0 - b0) * g0 / (g0 - 1.0),
            t1 + (w1 - b1) * g1 / (g1 - 1.0),
            t2 + (w2 - b2) * g2 / (g2 - 1.0),
            t3 + (w3 - b3) * g3 / (g3 - 1.0),
        )
        self._shares = None

    def refresh(self) -> None:
        """Let the time scales follow the usual return distance."""
        self.unit = max(SHORTEST_UNIT, 2.0 * exp(self._log_return))
        self._growths = _growths(self.unit)
        if self._weights[0] > LIMIT:
            self._uses = {name: self._scaled(row) for name, row in self._uses.items()}
            t0, t1, t2, t3 = self._totals
            w0, w1, w2, w3 = self._weights
            self._totals = (t0 / w0, t1 / w1, t2 / w2, t3 / w3)
            self._weights = (1.0,) * len(SCALES)
            self._shares = None

    def _scaled(self, row: list[float]) -> list[float]:
        """Counts as if the newest request weighed 1."""
        return [row[0], *(f / w for f, w in zip(row[1:], self._weights, strict=True))]

    def renamed(self, before: str, after: str) -> None:
        """An engine goes by another name; what is known under both is added up."""
        row = self._uses.pop(before, None)
        if row is None:
            return
        known = self._uses.setdefault(after, [0.0] * len(row))
        last = max(known[0], row[0])
        self._uses[after] = [last, *map(add, known[1:], row[1:])]

    def rates(self, engine_ids: Iterable[str]) -> list[float]:
        """The share of coming requests that will be for each of these engines, between 0 and 1."""
        if self._shares is None:
            t0, t1, t2, t3 = self._totals
            self._shares = (0.25 / t0, 0.25 / t1, 0.25 / t2, 0.25 / t3) if t0 else NOTHING[1:]
        s0, s1, s2, s3 = self._shares
        rows = [self._uses.get(engine_id, NOTHING) for engine_id in engine_ids]
        return [row[1] * s0 + row[2] * s1 + row[3] * s2 + row[4] * s3 for row in rows]

    def lasts(self, engine_ids: Iterable[str]) -> list[float]:
        """The number of each engine's last request; 0 when there was none."""
        return [self._uses.get(engine_id, NOTHING)[0] for engine_id in engine_ids]

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
        count = int(figure(state["count"]))
        for engine_id, (last, *counts) in state["uses"].items():
            f0, f1, f2, f3 = map(figure, counts)
            uses[str(engine_id)] = [int(figure(last, most=count)), f0, f1, f2, f3]
        t0, t1, t2, t3 = map(figure, state["totals"])
        log_return = figure(state["log_return"], most=LONGEST_RETURN)
        # The newest request weighs 1 in each; with none of them all are 0.
        if min(t0, t1, t2, t3) < (0.5 if count else 0.0) or (not count and any((t0, t1, t2, t3))):
            raise ValueError(f"totals {state['totals']} after {count} requests")
        self.count, self._log_return = count, log_return
        self._totals, self._uses = (t0, t1, t2, t3), uses
        self._weights = (1.0,) * len(SCALES)
        self._shares = None
        self.refresh()


def _growths(unit: float) -> tuple[float, ...]:
    """How much more each request weighs than the one before it, by scale."""
    return tuple(exp2(1.0 / (unit * scale)) for scale in SCALES)
