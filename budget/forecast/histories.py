"""When each engine comes back: a decayed histogram of the seconds between two uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

BINS = 28
FIRST_BIN_S = 2.0**-4
"""Bin b holds gaps from `FIRST_BIN_S * 2**b` seconds on; the last one holds all that are longer."""
GROWTH = 1.05
"""Each gap weighs this much more than the one before it: 14 gaps halve what came before."""
LIMIT = 1e12
PRIOR = 2.0
"""Gaps' worth of belief in the histogram of all engines."""


class Histories:
    """Answers: idle for so long, how likely is a use within the next so many seconds?

    Source: the hybrid histogram policy of Shahrad et al., "Serverless in the Wild", 2020.
    """

    __slots__ = ("_all", "_last", "_rows", "_total")

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._rows: dict[str, tuple[float, list[float]]] = {}
        self._all = [1.0 / BINS] * BINS
        self._total = 1.0

    def used(self, engine_id: str, now: float) -> None:
        """Note the gap since the last use."""
        last = self._last.get(engine_id)
        self._last[engine_id] = now
        if last is None:
            return
        where = _bin(now - last)
        self._all[where] += 1.0
        self._total += 1.0
        weight, row = self._rows.get(engine_id) or (1.0, [0.0] * BINS)
        weight *= GROWTH
        row[where] += weight
        if weight > LIMIT:
            row, weight = [value / weight for value in row], 1.0
        self._rows[engine_id] = (weight, row)

    def chance(self, engine_id: str, now: float, within_s: float) -> float:
        """Probability of a use in the next `within_s` seconds, given how long it was not used."""
        last = self._last.get(engine_id)
        if last is None:
            return 0.0
        idle_s = max(0.0, now - last)
        until_s = idle_s + within_s
        prior = PRIOR / self._total
        alive = prior * _beyond(self._all, idle_s)
        later = prior * _beyond(self._all, until_s)
        found = self._rows.get(engine_id)
        if found is not None:
            weight, row = found
            alive += _beyond(row, idle_s) / weight
            later += _beyond(row, until_s) / weight
        return 0.0 if alive <= 0.0 else 1.0 - later / alive

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable. Times of last uses are not kept: another clock runs after a restart."""
        return {
            "all": list(self._all),
            "rows": {name: [w, *row] for name, (w, row) in self._rows.items()},
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        rows = {}
        for name, (weight, *row) in state["rows"].items():
            rows[str(name)] = (float(weight), [float(value) for value in row])
        everything = [float(value) for value in state["all"]]
        if any(len(row) != BINS for _, row in rows.values()) or len(everything) != BINS:
            raise ValueError(f"histograms need {BINS} bins")
        self._rows, self._all, self._total = rows, everything, sum(everything)


def _bin(gap_s: float) -> int:
    if gap_s < 2.0 * FIRST_BIN_S:
        return 0
    return min(BINS - 1, math.frexp(gap_s / FIRST_BIN_S)[1] - 1)


def _beyond(row: list[float], gap_s: float) -> float:
    """The weight of gaps longer than `gap_s`, spread evenly over the logarithm within its bin."""
    where = _bin(gap_s)
    start_s = FIRST_BIN_S * 2.0**where
    inside = math.log2(max(1.0, gap_s / start_s))
    return row[where] * max(0.0, 1.0 - inside) + sum(row[where + 1 :])
