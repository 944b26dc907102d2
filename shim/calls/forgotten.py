"""Closing a stream that was forgotten on an event loop: its finaliser cannot await anything."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from backends.flows import Stream

_CLOSING: set[asyncio.Task[None]] = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def close_on(loop: asyncio.AbstractEventLoop, source: Stream[Any]) -> None:
    """Have a stream closed by its loop when that runs next; from any thread, and from a finaliser."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
        loop.call_soon_threadsafe(_begin, source)


def _begin(source: Stream[Any]) -> None:
    async def close() -> None:
        await source.aclose()

    task = asyncio.get_running_loop().create_task(close())
    _CLOSING.add(task)
    task.add_done_callback(_CLOSING.discard)
