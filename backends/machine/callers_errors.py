"""Telling what code of the caller raises inside a wait from what the wait itself raises.

A handler of a signal runs wherever its thread waits, and its `TimeoutError` or `ConnectionResetError` comes
out there. What a system call raises has come through frames of the waiting code alone; what a handler
raises has come through the handler's own frame.
"""

from __future__ import annotations

from typing import Final

_WAITING: Final = {
    *("anyio", "asyncio", "backends", "concurrent", "contextlib", "gevent", "httpcore", "io", "os"),
    *("pathlib", "selectors", "shim", "socket", "ssl", "subprocess", "threading", "uvloop"),
}
"""The packages whose code waits for sockets, files and processes; no handler of a caller stands in them."""


def raise_callers(error: BaseException) -> None:
    """Raise the caller's own error where `error` is one or was made of one; else return.

    It comes out as it was raised: neither its cause nor its context is changed.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and _is_callers(link):
            raise_as_it_is(link)
        link = link.__cause__


def raise_as_it_is(error: BaseException) -> None:
    """Raise an error out of the handling of another one, which does not become its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
        del error, context


def _is_callers(error: BaseException) -> bool:
    step = error.__traceback__
    while step is not None:
        module = step.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in _WAITING:
            return True
        step = step.tb_next
    return False
