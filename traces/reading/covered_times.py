"""Times that something covers, in as little memory as their gaps need: a trace has millions."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Final

_TOGETHER: Final = 4096


class CoveredTimes:
    """The union of intervals that are added in any order; quick where they come about in order."""

    def __init__(self, times: Iterable[tuple[float, float]] = ()) -> None:
        self._begins, self._ends = array("d"), array("d")
        self._new: list[tuple[float, float]] = []
        for begin, end in times:
            self.add(begin, end)

    def add(self, begin: float, end: float) -> None:
        """Add an interval; one that ends before it begins covers nothing."""
        if end > begin:
            self._new.append((begin, end))
            if len(self._new) >= _TOGETHER:
                self._settle()

    def __iter__(self) -> Iterator[tuple[float, float]]:
        """The intervals that do not touch, in order."""
        self._settle()
        return zip(self._begins, self._ends, strict=True)

    def _settle(self) -> None:
        if not self._new:
            return
        new, self._new = sorted(self._new), []
        begins, ends = self._begins, self._ends
        # Only what ends behind the first new one can touch any of them.
        touched = bisect_left(ends, new[0][0])
        known = list(zip(begins[touched:], ends[touched:], strict=True))
        del begins[touched:], ends[touched:]
        for begin, end in heapq.merge(known, new):
            if ends and begin <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                begins.append(begin)
                ends.append(end)


def covered(times: Iterable[Iterable[tuple[float, float]]], begin: float, end: float) -> float:
    """Seconds between begin and end that any of these covers; each is in order."""
    total, reached = 0.0, begin
    for start, stop in heapq.merge(*times):
        more = min(stop, end) - max(start, reached)
        if more > 0:
            total += more
            reached = min(stop, end)
    return total
