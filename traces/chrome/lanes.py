"""Which lane a slice goes to, such that the slices of a lane always nest.

Perfetto drops a slice that overlaps another one of its lane by as little as 1 ns, so a slice that does
not fit a lane goes to the next one of its group.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import attrgetter

_KEEP = 4096
"""Outermost slices that a lane remembers; what starts before the oldest one goes to another lane."""

_GAP_LANES = 32

_TIDS_PER_GROUP = 10_000
_TIDS_PER_PROCESS = 1_000_000
_LAST_GROUP = _TIDS_PER_PROCESS // _TIDS_PER_GROUP - 1
_LAST_PROCESS = (2**31 - 1) // _TIDS_PER_PROCESS - 1

_start = attrgetter("start")
_end = attrgetter("end")


class _Slice:
    __slots__ = ("children", "end", "start")

    def __init__(self, start: int, end: int, children: list[_Slice]) -> None:
        self.start = start
        self.end = end
        self.children = children


def _insert(slices: list[_Slice], start: int, end: int, *, nest: bool) -> bool:
    """Add [start, end] to disjoint, sorted slices if it is disjoint from them or nests with them."""
    if not slices or slices[-1].end <= start:
        slices.append(_Slice(start, end, []))
        return True
    low = bisect_right(slices, start, key=_end)
    high = max(low, bisect_left(slices, end, key=_start))
    touched = slices[low:high]
    if not touched:
        slices.insert(low, _Slice(start, end, []))
        return True
    if not nest:
        return False
    if len(touched) == 1 and touched[0].start <= start and end <= touched[0].end:
        return _insert(touched[0].children, start, end, nest=True)
    if start <= touched[0].start and touched[-1].end <= end:
        slices[low:high] = [_Slice(start, end, touched)]
        return True
    return False


class Lane:
    """One lane: remembers its slices and takes a new one only if it nests. Times are not negative."""

    def __init__(self) -> None:
        self._slices: list[_Slice] = []
        self._floor: int | None = None
        self.last_end = 0

    def place(self, start: int, end: int, *, nest: bool = False) -> bool:
        """Take [start, end]; False if it overlaps. With `nest`, containing and contained is fine too."""
        if self._floor is not None and start < self._floor:
            return False
        if not _insert(self._slices, start, end, nest=nest):
            return False
        self.last_end = max(self.last_end, end)
        if len(self._slices) > _KEEP:
            self._floor = self._slices[_KEEP // 2 - 1].end
            del self._slices[: _KEEP // 2]
        return True


class LaneGroup:
    """Lanes of one kind under one process: the first one free takes a slice, a new one if none is."""

    def __init__(self, first_tid: int, announce: Callable[[int, int], None]) -> None:
        self._first_tid = first_tid
        self._announce = announce
        self._lanes: list[Lane] = []

    def place(self, start: int, end: int, *, nest: bool = False) -> int:
        """The tid of the lane that took [start, end]; with `nest` it may lie within another slice."""
        for index, lane in enumerate(self._lanes):
            if lane.last_end <= start:
                lane.place(start, end)
                return self._first_tid + index
        # Out of order: a gap, looked for in some lanes only, since thousands may overlap.
        for index, lane in enumerate(self._lanes[:_GAP_LANES]):
            if lane.place(start, end, nest=nest):
                return self._first_tid + index
        index = len(self._lanes)
        self._lane(index).place(start, end)
        return self._first_tid + index

    def place_on(self, index: int, start: int, end: int) -> int | None:
        """The tid of lane `index` if [start, end] nests there, else None."""
        if self._lane(index).place(start, end, nest=True):
            return self._first_tid + index
        return None

    def free_lane(self, start: int, taken: set[int]) -> int:
        """The first lane, not in `taken`, on which nothing ends after `start`."""
        index = 0
        while index in taken or self._lane(index).last_end > start:
            index += 1
        return index

    def _lane(self, index: int) -> Lane:
        while len(self._lanes) <= index:
            if len(self._lanes) >= _TIDS_PER_GROUP:
                raise OverflowError(
                    f"more than {_TIDS_PER_GROUP} slices overlap in one group of lanes"
                )
            self._announce(self._first_tid + len(self._lanes), len(self._lanes))
            self._lanes.append(Lane())
        return self._lanes[index]


class LaneTable:
    """Gives out pids by process name and groups of tids by (process, group).

    Args:
        announce_process: called once per process with (pid, name).
        announce_lane: called once per lane with (pid, tid, name).
        after: the highest pid that is taken.
    """

    def __init__(
        self,
        announce_process: Callable[[int, str], None],
        announce_lane: Callable[[int, int, str], None],
        after: int = 0,
    ) -> None:
        self._after = after
        self._announce_process = announce_process
        self._announce_lane = announce_lane
        self._pids: dict[str, int] = {}
        self._groups: dict[tuple[int, int], LaneGroup] = {}
        self._titles: dict[tuple[int, int], str] = {}

    def pid(self, process: str) -> int:
        """The pid of that process name, the same each time."""
        pid = self._pids.get(process)
        if pid is None:
            pid = self._after + len(self._pids) + 1
            if pid > _LAST_PROCESS:
                raise OverflowError(f"more than {_LAST_PROCESS} engines and devices on one trace")
            self._pids[process] = pid
            self._announce_process(pid, process)
        return pid

    def title(self, pid: int, tid: int) -> str:
        """What a lane is called."""
        return self._titles[pid, tid]

    def group(self, pid: int, order: int, title: str) -> LaneGroup:
        """The lanes named `title` under `pid`; `order` sorts the groups of a process (0 first)."""
        order = min(order, _LAST_GROUP)
        group = self._groups.get((pid, order))
        if group is None:
            first_tid = pid * _TIDS_PER_PROCESS + order * _TIDS_PER_GROUP

            def announce(tid: int, index: int) -> None:
                name = title if index == 0 else f"{title} ({index + 1})"
                self._titles[pid, tid] = name
                self._announce_lane(pid, tid, name)

            group = LaneGroup(first_tid, announce)
            self._groups[pid, order] = group
        return group
