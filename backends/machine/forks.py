"""Renews locks and connections in a forked child, before the child does anything.

A lock may be held by a thread that does not exist in the child, and an open connection would be used by
both processes. Leases at the keeper stay the parent's, and only the parent ends them.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewed(Protocol):
    """An object with locks or connections."""

    def forked(self) -> None:
        """In a forked child: close the copies of connections without a message, and make new locks."""
        ...


_ALL: WeakSet[Renewed] = WeakSet()


def renew_after_fork(found: Renewed) -> None:
    """Call an object's `forked` in each forked child, as long as the object exists."""
    _ALL.add(found)


def _in_child() -> None:
    for found in list(_ALL):
        found.forked()


os.register_at_fork(after_in_child=_in_child)
