"""When each engine comes back: a decayed histogram of the seconds between two uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
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

    __slots__ = ("_all", "_beyond", "_last", "_rows", "_total")

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._rows: dict[str, tuple[float, list[float]]] = {}
        self._all = [1.0 / BINS] * BINS
        self._beyond: list[float] | None = None
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
        self._beyond = None
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
        idle, idle_share = _place(idle_s)
        until, until_share = _place(idle_s + within_s)
        if self._beyond is None:
            self._beyond = [*accumulate(reversed(self._all))]
            self._beyond.reverse()
        # What lies beyond a gap: its bin's share, and all of the longer bins.
        everyone, beyond = self._all, self._beyond
        prior = PRIOR / self._total
        alive = prior * (beyond[idle] - everyone[idle] * (1.0 - idle_share))
        later = prior * (beyond[until] - everyone[until] * (1.0 - until_share))
        found = self._rows.get(engine_id)
        if found is not None:
            weight, row = found
            longest = sum(row[until + 1 :])
            later += (row[until] * until_share + longest) / weight
            longer = sum(row[idle + 1 : until + 1]) + longest
            alive += (row[idle] * idle_share + longer) / weight
        return 0.0 if alive <= 0.0 else max(0.0, 1.0 - later / alive)

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
        self._beyond = None


def _bin(gap_s: float) -> int:
    if gap_s < 2.0 * FIRST_BIN_S:
        return 0
    return min(BINS - 1, math.frexp(gap_s / FIRST_BIN_S)[1] - 1)


def _place(gap_s: float) -> tuple[int, float]:
    """The bin of a gap, and the share of that bin beyond it; bins are even over the logarithm."""
    mantissa, exponent = math.frexp(gap_s / FIRST_BIN_S)
    if exponent < 1:
        return 0, 1.0
    if exponent > BINS:
        return BINS - 1, 0.0
    return exponent - 1, -math.log2(mantissa)
