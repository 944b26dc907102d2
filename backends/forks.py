"""What a forked child must not share with its parent is made anew there, before the child does anything.

A lock may be held by a thread that does not exist in the child, and an open connection would be used by
both; what the parent holds at the keeper is the parent's to end.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Renewed(Protocol):
    """An object with locks or connections."""

    def forked(self) -> None:
        """In a forked child: close the copies of connections, tell nobody, and make new locks."""
        ...


_ALL: WeakSet[Renewed] = WeakSet()


def renew_after_fork(found: Renewed) -> None:
    """Have an object's `forked` called in each child, for as long as the object lives."""
    _ALL.add(found)


def _in_child() -> None:
    for found in list(_ALL):
        found.forked()


os.register_at_fork(after_in_child=_in_child)
