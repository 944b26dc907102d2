"""How one kind of event is handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class EventRule(NamedTuple):
    """`admit` raises unless the event can be, and changes nothing; `apply` then makes it true.

    `apply` returns whether anything can follow from that. After `admit` an event takes effect: what
    `apply` leaves undone is forced (`recovery.forced_effects`). `certain`: it tells of what has
    happened already, so that it counts as admitted even where the check itself fails.
    """

    admit: Callable[[Any], None]
    apply: Callable[[Any, float], bool]
    certain: bool = False
