"""Ending a keeper step by step: each within its bound, and none keeps the next from coming."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from shim.keeper.faults import Faults


async def step(
    faults: Faults, what: str, limit_s: float, work: Callable[[], Awaitable[Any]]
) -> None:
    """One step of an end. What it raises is noted; only a cancellation of the caller goes on.

    Args:
        faults: told what failed, or took too long.
        what: the step, as the beginning of a sentence.
        limit_s: after it the step is cancelled.
        work: the step.
    """
    me = asyncio.current_task()
    try:
        async with asyncio.timeout(limit_s):
            await work()
    except asyncio.CancelledError as error:
        if me is not None and me.cancelling():
            raise
        faults.note("end", what, error)
    except Exception as error:
        faults.note("end", what, error)
