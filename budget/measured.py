"""What a device has room for, from what was measured of it."""

from __future__ import annotations


def room_bytes(free: int, taken: int, cached: int, reserve: int) -> int:
    """Bytes that a device has for engines in all, those of now included.

    Args:
        free: what the device has free now. The host counts pages of files as free: it can drop them.
        taken: what engines take there.
        cached: of these, pages of mapped files, which are among `free` already.
        reserve: what is to stay free.
    """
    return free + max(taken - cached, 0) - reserve
