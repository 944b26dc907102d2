"""Closes resources at their event loop's end, while the loop can still await.

A loop has no callbacks for its end. But `asyncio.run` and similar runners finish the loop's unfinished
asynchronous generators (`loop.shutdown_asyncgens`), so such a generator holds the resource here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

LoopEnd = AsyncGenerator[None, None]


def at_loop_end(close: Callable[[], Awaitable[None]]) -> LoopEnd:
    """Await `close` when the running loop ends, or earlier, when the returned object is garbage.

    Keep the object until then; its own `aclose` runs `close` at once. A loop that is closed without
    `shutdown_asyncgens` does not run `close`: see `loop.is_closed()`.
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
