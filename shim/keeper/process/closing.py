"""Ending a keeper step by step: each within its bound, and none keeps the next from coming."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from shim.keeper import limits
from shim.keeper.shell.fault_counts import FaultCounts


class Steps:
    """The steps of one end, which begins now.

    Args:
        faults: told what failed, or took too long.
        limit_s: for all steps together; a step that comes after it gets next to no time.
    """

    def __init__(self, faults: FaultCounts, limit_s: float) -> None:
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + limit_s

    async def step(
        self, what: str, work: Callable[[], Awaitable[Any]], more_s: float = 0.0
    ) -> None:
        """One step. What it raises is noted; only a cancellation of the caller goes on.

        Args:
            what: the step, as the beginning of a sentence.
            work: the step; cancelled when its time is up.
            more_s: what it gets beyond its usual time.
        """
        me = asyncio.current_task()
        left_s = self._until - self._loop.time()
        limit_s = max(limits.END_LAST_S, min(limits.END_STEP_S + more_s, left_s))
        try:
            async with asyncio.timeout(limit_s):
                await work()
        except asyncio.CancelledError as error:
            if me is not None and me.cancelling():
                raise
            self._faults.note("end", what, error)
        except Exception as error:
            self._faults.note("end", what, error)


def end_process_within(limit_s: float) -> None:
    """End this process in good order from now on, but by force after a while.

    The end of an event loop and of Python waits for threads, and one that hangs in a disk or in a driver
    cannot be ended.
    """
    timer = threading.Timer(limit_s, os._exit, (0,))
    timer.daemon = True
    timer.start()
