"""Room on a device, from figures of which some are missing."""

from __future__ import annotations

from budget.books.room import Taken, room_bytes, taken_bytes


def test_measured_bytes_are_added_up() -> None:
    """Whatever is booked, and whether an engine is on its way or not."""
    assert taken_bytes([Taken(5, 9), Taken(7, 9, moving=True), Taken(0, 0)]) == 12
    assert taken_bytes([]) == 0


def test_where_one_measure_is_missing_the_books_count() -> None:
    """For all engines there: numbers that fit one process may fit another by accident."""
    assert taken_bytes([Taken(None, 9), Taken(7, 8)]) == 17


def test_with_an_engine_on_its_way_missing_measures_stay_missing() -> None:
    """What is booked is not taken yet, or no more: no figure is better than a wrong one."""
    assert taken_bytes([Taken(None, 9), Taken(None, 8, moving=True)]) is None


def test_room_is_what_is_free_and_what_is_ours_less_the_reserve() -> None:
    """Mapped pages of ours are free already."""
    assert room_bytes(100, 50, 20, 10) == 120
    assert room_bytes(100, 20, 50, 10) == 90


def test_room_is_unknown_where_a_figure_is() -> None:
    """None is not 0: a device that says nothing is not full."""
    assert room_bytes(None, 50, 0, 10) is None
    assert room_bytes(100, None, 0, 10) is None
