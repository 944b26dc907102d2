"""When each engine comes back: a decayed histogram of the seconds between two uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import frexp, log2
from typing import Any

from budget.eviction.forecast.figures import figure

BINS = 28
FIRST_BIN_S = 2.0**-4
"""Bin b holds gaps from `FIRST_BIN_S * 2**b` seconds on; the last one holds all that are longer."""
GROWTH = 1.05
"""Each gap weighs this much more than the one before it: 14 gaps halve what came before."""
LIMIT = 1e12
PRIOR = 2.0
"""Gaps' worth of belief in the histogram of all engines."""


class Histogram:
    """Weights of gaps by bin; `weight` is what the newest one counts."""

    __slots__ = ("_later", "bins", "weight")

    def __init__(self, weight: float, bins: list[float]) -> None:
        self.weight, self.bins = weight, bins
        self._later: list[float] | None = None

    def add(self, where: int) -> None:
        """Note one gap, which weighs `GROWTH` times as much as the one before it."""
        self.weight = weight = self.weight * GROWTH
        self.bins[where] += weight
        self._later = None
        if weight > LIMIT:
            self.bins, self.weight = [value / weight for value in self.bins], 1.0

    def count(self, places: Iterable[int]) -> None:
        """Note gaps of which each weighs as much as the one before it."""
        bins, weight = self.bins, self.weight
        for where in places:
            bins[where] += weight
        self._later = None

    @property
    def later(self) -> list[float]:
        """By bin: the weight of all gaps in it and in longer ones; 0 behind the last."""
        if self._later is None:
            self._later = [*accumulate(reversed(self.bins), initial=0.0)]
            self._later.reverse()
        return self._later


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

    def learn(self, engine_ids: Iterable[str], times: Iterable[float]) -> None:
        """Note the gaps since the last uses; `times` in seconds, in order."""
        lasts, rows = self._last, self._rows
        places = []
        for engine_id, now in zip(engine_ids, times, strict=True):
            last = lasts.get(engine_id)
            lasts[engine_id] = now
            if last is None:
                continue
            exponent = frexp((now - last) / FIRST_BIN_S)[1]
            where = exponent - 1 if 0 < exponent <= BINS else BINS - 1 if exponent > 0 else 0
            places.append(where)
            row = rows.get(engine_id)
            if row is None:
                row = rows[engine_id] = Histogram(1.0, [0.0] * BINS)
            row.add(where)
        self._all.count(places)
        self._total += len(places)

    def renamed(self, before: str, after: str) -> None:
        """An engine goes by another name; where both are known, the later use and the new gaps count."""
        last, row = self._last.pop(before, None), self._rows.pop(before, None)
        if last is not None:
            self._last[after] = max(last, self._last.get(after, last))
        if row is not None:
            self._rows.setdefault(after, row)

    def chances(self, engine_ids: Iterable[str], now: float, within_s: float) -> list[float]:
        """Each engine's probability of a use in the next `within_s` seconds, idle as long as it is."""
        lasts, rows = self._last, self._rows
        prior, everything = PRIOR / self._total, self._all.later
        found = []
        for engine_id in engine_ids:
            last = lasts.get(engine_id)
            if last is None:
                found.append(0.0)
                continue
            idle_s = now - last
            idle, idle_share = _place(idle_s)
            until, until_share = _place(idle_s + within_s)
            alive = everything[idle + 1]
            alive = prior * (alive + idle_share * (everything[idle] - alive))
            later = everything[until + 1]
            later = prior * (later + until_share * (everything[until] - later))
            row = rows.get(engine_id)
            if row is not None:
                weight, own = row.weight, row.later
                low = own[idle + 1]
                alive += (low + idle_share * (own[idle] - low)) / weight
                low = own[until + 1]
                later += (low + until_share * (own[until] - low)) / weight
            found.append(1.0 - later / alive if later < alive else 0.0)
        return found

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
            rows[str(name)] = Histogram(figure(weight, 0.5, 2.0 * LIMIT), [figure(x) for x in row])
        everything = [figure(value) for value in state["all"]]
        if any(len(row.bins) != BINS for row in rows.values()) or len(everything) != BINS:
            raise ValueError(f"histograms need {BINS} bins")
        if sum(everything) < 0.5:
            raise ValueError("a histogram of all engines that is empty")
        self._rows, self._total = rows, sum(everything)
        self._all = Histogram(1.0, everything)


def _place(gap_s: float) -> tuple[int, float]:
    """The bin of a gap, and the share of that bin beyond it; bins are even over the logarithm."""
    if gap_s < FIRST_BIN_S:
        return 0, 1.0
    mantissa, exponent = frexp(gap_s / FIRST_BIN_S)
    return (exponent - 1, -log2(mantissa)) if exponent <= BINS else (BINS - 1, 0.0)
