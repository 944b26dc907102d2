"""Books balance: on every device, or on none."""

from __future__ import annotations

import pytest

from budget.books.ledger import Books, Hold
from budget.errors import InternalError


def test_the_sums_hold_through_every_kind_of_hold() -> None:
    """Reserved = protected + evictable; leaving is part of protected; free = limit - reserved."""
    books = Books({"gpu": 100})
    books.book("a", (("gpu", 30),))
    books.book("b", (("gpu", 20),))
    books.hold("b", Hold.EVICTABLE)
    view = books["gpu"].view()
    assert (view.protected_bytes, view.evictable_bytes, view.leaving_bytes) == (30, 20, 0)
    books.hold("b", Hold.LEAVING)
    view = books["gpu"].view()
    assert (view.protected_bytes, view.evictable_bytes, view.leaving_bytes) == (50, 0, 20)
    assert (view.reserved_bytes, view.free_bytes) == (50, 50)
    assert books.release("b") == (("gpu", 20),)
    assert books["gpu"].reserved_bytes == 30
    assert not list(books.imbalances())


def test_a_booking_that_one_device_cannot_hold_stands_on_none() -> None:
    """The refusal comes before the first byte."""
    books = Books({"gpu": 100, "host": 10})
    with pytest.raises(InternalError, match="on host with room 10"):
        books.book("a", (("gpu", 50), ("host", 11)))
    assert [ledger.reserved_bytes for ledger in books] == [0, 0]
    assert books.entry("a") is None


def test_a_holder_books_once() -> None:
    """One booking a holder."""
    books = Books({"gpu": 100})
    books.book("a", (("gpu", 30),))
    with pytest.raises(InternalError, match="booked already"):
        books.book("a", (("gpu", 30),))
    assert books["gpu"].reserved_bytes == 30


def test_room_is_the_smaller_of_ledger_and_measurement() -> None:
    """A measured ceiling below the limit counts."""
    books = Books({"gpu": 100})
    books["gpu"].ceiling_bytes = 40
    books.book("a", (("gpu", 30),))
    assert books["gpu"].room_bytes == 10
    with pytest.raises(InternalError):
        books.book("b", (("gpu", 11),))


def test_a_correction_moves_bytes_between_devices_and_may_pass_the_limit() -> None:
    """The measurement is the truth, also when it is unwelcome."""
    books = Books({"gpu": 100, "host": 100})
    books.book("a", (("gpu", 90),))
    books.correct("a", (("gpu", 110), ("host", 5)))
    assert [ledger.reserved_bytes for ledger in books] == [110, 5]
    assert books["gpu"].view().free_bytes == -10
    books.release("a")
    assert [ledger.reserved_bytes for ledger in books] == [0, 0]
    assert not list(books.imbalances())


def test_books_that_do_not_balance_are_found() -> None:
    """The sums are compared with the entries, and opening the books anew puts them right."""
    books = Books({"gpu": 100})
    books.book("a", (("gpu", 30),))
    books["gpu"].change(Hold.PROTECTED, 1)
    assert ["gpu does not balance" in found for found in books.imbalances()] == [True]
    books.rebuild({"a": ((("gpu", 30),), Hold.PROTECTED)})
    assert not list(books.imbalances())
