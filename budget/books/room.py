"""What a device has room for, from what was measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Taken:
    """What one of our engines takes of a device.

    Attributes:
        measured: bytes; None where they are not to be had. booked: bytes in the books. moving:
        whether it is loading or leaving, so that its bytes of now are anything up to `booked`.
    """

    measured: int | None
    booked: int
    moving: bool = False


def taken_bytes(engines: Sequence[Taken]) -> int | None:
    """Bytes that keepwarm's engines take of a device in all; None where that is not known.

    Where the measure of one is missing, that of none is trusted (a container's process numbers may
    be another's): then what is booked is what is taken, unless an engine is loading or leaving.
    """
    measured = [engine.measured for engine in engines if engine.measured is not None]
    if len(measured) == len(engines):
        return sum(measured)
    if any(engine.moving for engine in engines):
        return None
    return sum(engine.booked for engine in engines)


def room_bytes(free: int | None, taken: int | None, cached: int, reserve: int) -> int | None:
    """Bytes that a device has for engines in all, those of now included; None where not known.

    Args:
        free: what the device has free, read before what engines take: then one that grows in
        between
            does not look like bytes that another program took. The host counts pages of files as
            free: it can drop them.
        taken: what engines take there.
        cached: of these, pages of mapped files, which are among `free` already.
        reserve: what is to stay free.
    """
    if free is None or taken is None:
        return None
    return free + max(taken - cached, 0) - reserve
