"""Closing at an event loop's end what was opened in it, while it can still be awaited there.

A loop has no list of what to do before it closes, but `asyncio.run` and every runner of its kind finish
the loop's unfinished asynchronous generators (`loop.shutdown_asyncgens`). So what has to be closed is held
by such a generator.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

LoopEnd = AsyncGenerator[None, None]


def at_loop_end(close: Callable[[], Awaitable[None]]) -> LoopEnd:
    """Await `close` in the running loop when that ends, or when the returned object is let go before.

    The object has to be kept for as long as `close` is wanted; its own `aclose` runs `close` at once. A
    loop that is closed without `shutdown_asyncgens` runs nothing: see `loop.is_closed()`.
    """
    held = _hold(close)
    # The first step suspends at `yield` alone, so that it needs no task; it registers the generator.
    step = held.__anext__()
    try:
        step.send(None)
    except StopIteration:
        return held
    raise AssertionError


async def _hold(close: Callable[[], Awaitable[None]]) -> LoopEnd:
    try:
        yield
    finally:
        await close()
