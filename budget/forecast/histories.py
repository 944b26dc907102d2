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


class Histogram:
    """Weights of gaps by bin; `weight` is what the next one counts."""

    __slots__ = ("_beyond", "bins", "weight")

    def __init__(self, weight: float, bins: list[float]) -> None:
        self.weight, self.bins = weight, bins
        self._beyond: list[float] | None = None

    def add(self, where: int, growth: float) -> None:
        """Note one gap, which weighs `growth` times as much as the one before it."""
        self.weight *= growth
        self.bins[where] += self.weight
        if self.weight > LIMIT:
            self.bins, self.weight = [value / self.weight for value in self.bins], 1.0
        self._beyond = None

    def beyond(self, where: int, share: float) -> float:
        """The weight of this share of a bin and of all longer ones."""
        if self._beyond is None:
            self._beyond = [*accumulate(reversed(self.bins))]
            self._beyond.reverse()
        return self._beyond[where] - self.bins[where] * (1.0 - share)


class Histories:
    """Answers: idle for so long, how likely is a use within the next so many seconds?

    Source: the hybrid histogram policy of Shahrad et al., "Serverless in the Wild", 2020.
    """

    __slots__ = ("_all", "_last", "_rows", "_total")

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._rows: dict[str, Histogram] = {}
        self._all = Histogram(1.0, [1.0 / BINS] * BINS)
        self._total = 1.0

    def used(self, engine_id: str, now: float) -> None:
        """Note the gap since the last use."""
        last = self._last.get(engine_id)
        self._last[engine_id] = now
        if last is None:
            return
        where = _place(now - last)[0]
        self._all.add(where, 1.0)
        self._total += 1.0
        row = self._rows.get(engine_id)
        if row is None:
            row = self._rows[engine_id] = Histogram(1.0, [0.0] * BINS)
        row.add(where, GROWTH)

    def chance(self, engine_id: str, now: float, within_s: float) -> float:
        """Probability of a use in the next `within_s` seconds, given how long it was not used."""
        last = self._last.get(engine_id)
        if last is None:
            return 0.0
        idle_s = now - last if now > last else 0.0
        idle, idle_share = _place(idle_s)
        until, until_share = _place(idle_s + within_s)
        prior = PRIOR / self._total
        alive = prior * self._all.beyond(idle, idle_share)
        later = prior * self._all.beyond(until, until_share)
        row = self._rows.get(engine_id)
        if row is not None:
            alive += row.beyond(idle, idle_share) / row.weight
            later += row.beyond(until, until_share) / row.weight
        return 0.0 if alive <= 0.0 else max(0.0, 1.0 - later / alive)

    def export_state(self) -> dict[str, Any]:
        """JSON-serialisable. Times of last uses are not kept: another clock runs after a restart."""
        return {
            "all": list(self._all.bins),
            "rows": {name: [row.weight, *row.bins] for name, row in self._rows.items()},
        }

    def import_state(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, TypeError or ValueError when the state is damaged."""
        rows = {}
        for name, (weight, *row) in state["rows"].items():
            rows[str(name)] = Histogram(float(weight), [float(value) for value in row])
        everything = [float(value) for value in state["all"]]
        if any(len(row.bins) != BINS for row in rows.values()) or len(everything) != BINS:
            raise ValueError(f"histograms need {BINS} bins")
        self._rows, self._total = rows, sum(everything)
        self._all = Histogram(1.0, everything)


def _place(gap_s: float) -> tuple[int, float]:
    """The bin of a gap, and the share of that bin beyond it; bins are even over the logarithm."""
    mantissa, exponent = math.frexp(gap_s / FIRST_BIN_S)
    if exponent < 1:
        return 0, 1.0
    if exponent > BINS:
        return BINS - 1, 0.0
    return exponent - 1, -math.log2(mantissa)
