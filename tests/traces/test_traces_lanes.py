"""Lanes: whatever is placed on one nests there."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from traces.chrome.lanes import LaneGroup, LaneTable

_intervals = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), max_size=40)


def _nests(slices: list[tuple[int, int]]) -> bool:
    """Whether no two slices overlap without one containing the other."""
    return not any(a[0] < b[0] < a[1] < b[1] for a in slices for b in slices)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_intervals, st.booleans())
def test_slices_of_a_lane_nest_in_whatever_order_they_come(
    intervals: list[tuple[int, int]], nest: bool
) -> None:
    """No two slices of a lane overlap; without `nest` none contains another either."""
    group = LaneGroup(0, lambda tid, index: None)
    lanes: dict[int, list[tuple[int, int]]] = {}
    for start, length in intervals:
        tid = group.place(start, start + length, nest=nest)
        lanes.setdefault(tid, []).append((start, start + length))
    for slices in lanes.values():
        assert _nests(slices)
        if not nest:
            ordered = sorted(slices)
            assert all(a[1] <= b[0] for a, b in pairwise(ordered))


def test_a_long_run_forgets_old_slices_and_still_never_overlaps() -> None:
    """A lane's memory is bounded: what starts before it goes to another lane."""
    group = LaneGroup(0, lambda tid, index: None)
    tids = {group.place(at * 10, at * 10 + 10) for at in range(10_000)}
    assert tids == {0}
    assert group.place(5, 6) == 1


def test_pids_and_tids_stay_in_perfettos_range() -> None:
    """Tids are below 2^31, unique over processes, and sorted by the order of their groups."""
    table = LaneTable(lambda pid, name: None, lambda pid, tid, name: None)
    tids = [
        table.group(table.pid(f"p{number}"), order, "t").place(0, 1)
        for number in range(2000)
        for order in (0, 1, 99, 500)
    ]
    assert max(tids) < 2**31
    # The last two orders share the last group, so the second one of them gets its second lane.
    assert len(set(tids)) == len(tids)
    assert tids == sorted(tids)
