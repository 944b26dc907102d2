"""Closes streams that their caller left open on an event loop, because a finaliser cannot await."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from backends.flows import Stream

_CLOSING: set[asyncio.Task[None]] = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def close_on(loop: asyncio.AbstractEventLoop, source: Stream[Any]) -> None:
    """Let the loop close a stream when it runs next; callable from any thread and from a finaliser."""
    with contextlib.suppress(RuntimeError):  # the loop is closed, and its connections with it
        loop.call_soon_threadsafe(_begin, source)


def _begin(source: Stream[Any]) -> None:
    async def close() -> None:
        await source.aclose()

    task = asyncio.get_running_loop().create_task(close())
    _CLOSING.add(task)
    task.add_done_callback(_CLOSING.discard)
