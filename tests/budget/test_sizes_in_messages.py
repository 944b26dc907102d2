"""Messages have sizes that people read, and facts have the bytes."""

from __future__ import annotations

import pytest

from backends.engine_process.ceiling import Ceilings
from budget.admission.refusals import never_fits, no_room, pins_do_not_fit
from budget.books.byte_text import size
from budget.errors import KeepwarmError
from budget.footprint import HOST

GIB = 1 << 30
SHORTFALL = ("cuda:0", 24 * GIB, 6 * GIB, 20 * GIB + 1)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.50 KiB"),
        (80 << 30, "80.0 GiB"),
        (3 << 40, "3.00 TiB"),
    ],
)
def test_bytes_are_read_in_the_unit_that_fits(n_bytes: int, text: str) -> None:
    """Three figures, and binary units."""
    assert size(n_bytes) == text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (never_fits("m", SHORTFALL), "20.0 GiB on cuda:0, where the limit is 24.0 GiB"),
        (pins_do_not_fit(["m"], SHORTFALL), "the other pins hold 6.00 GiB: 2.00 GiB too much"),
        (no_room("m", 3.0, SHORTFALL, 9 * GIB), "other programs leave 9.00 GiB of 24.0 GiB"),
    ],
)
def test_a_refusal_says_sizes_and_its_facts_have_the_bytes(error: KeepwarmError, said: str) -> None:
    """The number of bytes is in no message."""
    assert said in error.message
    assert error.facts["requested_bytes"] == 20 * GIB + 1
    assert str(20 * GIB + 1) not in error.message


def test_an_engine_that_takes_too_much_is_said_in_sizes() -> None:
    """What it took, what is booked, and the most."""
    error = Ceilings({HOST: 2 * GIB}, GIB).exceeded("m", {HOST: 9 * GIB}, ())
    assert error is not None
    assert error.message.startswith("m took 9.00 GiB of host; 2.00 GiB are booked, and ")
    assert error.facts["found_bytes"] == 9 * GIB
