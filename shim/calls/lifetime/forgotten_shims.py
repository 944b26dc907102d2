"""Closes sessions whose `Shim` is gone, and those that are open when the program ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from typing import Protocol


class Closable(Protocol):
    """A session."""

    def close(self) -> None:
        """Close its connections, and end its inline keeper. Idempotent."""
        ...


_OPEN: weakref.WeakSet[Closable] = weakref.WeakSet()


class Owner:
    """What a `Shim` and its open streams hold: the session is closed when the last of them is gone."""

    def __init__(self, session: Closable) -> None:
        _OPEN.add(session)
        weakref.finalize(self, _close, session, os.getpid()).atexit = False


def _close(session: Closable, pid: int) -> None:
    """Close a session in a thread: what runs here may hold any lock, or be the keeper's own thread."""
    if os.getpid() == pid:
        with contextlib.suppress(RuntimeError):  # the program ends, and `_close_all` has closed it
            threading.Thread(target=session.close, name="keepwarm-close").start()


@atexit.register
def _close_all() -> None:
    for session in list(_OPEN):
        session.close()
