"""Ctrl-Z: a stopped command holds no lease, and a continued command goes on where it was.

Otherwise a stopped command would occupy its model and its slot until it is continued.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")


class Stopped(BaseException):
    """Ctrl-Z was pressed. It is raised as `KeyboardInterrupt` is, so that leases end on the way out."""


class Stops:
    """What Ctrl-Z does in a part of a command."""

    def __init__(self) -> None:
        self._held_off = False
        self._pending = False

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Inside, Ctrl-Z raises `Stopped`; outside it stops the process as it always did."""
        before = signal.getsignal(signal.SIGTSTP)
        if (
            before is not signal.SIG_DFL
            or threading.current_thread() is not threading.main_thread()
        ):
            # A shell without job control makes its commands ignore the signal.
            yield
            return
        signal.signal(signal.SIGTSTP, self._came)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)

    @contextlib.contextmanager
    def held_off(self) -> Iterator[None]:
        """Inside, Ctrl-Z waits: a piece of text is printed and counted before the process may stop."""
        self._held_off = True
        try:
            yield
        finally:
            self._held_off = False
        if self._pending:
            self._raise()

    def _came(self, _number: int, _frame: FrameType | None) -> None:
        if self._held_off:
            self._pending = True
        else:
            self._raise()

    def _raise(self) -> None:
        self._pending = False
        raise Stopped

    def stop_here(self) -> None:
        """Stop the process; returns when it is continued."""
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)


def asked_again(ask: Callable[[], _T], stopped: Callable[[], None]) -> _T:
    """What `ask` returns. Ctrl-Z breaks `ask` off and stops the process, which then asks again.

    Args:
        ask: holds no lease once an exception has left it.
        stopped: called before the process stops.
    """
    stops = Stops()
    while True:
        try:
            with stops.raised():
                return ask()
        except Stopped:
            stopped()
            stops.stop_here()
