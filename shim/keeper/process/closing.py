"""Ends a keeper step by step: each step is bounded, and a failed step does not stop the next."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from shim.keeper import limits
from shim.keeper.shell.fault_counts import FaultCounts


class Steps:
    """The steps of one end, which begins now.

    Args:
        faults: counts steps that failed or took too long.
        limit_s: for all steps together; a step that begins after it gets `END_LAST_S`.
    """

    def __init__(self, faults: FaultCounts, limit_s: float) -> None:
        self._faults = faults
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + limit_s

    async def step(
        self, what: str, work: Callable[[], Awaitable[Any]], more_s: float = 0.0
    ) -> None:
        """Run one step. Errors are noted; only a cancellation of the caller is raised.

        Args:
            what: the step, as the beginning of a sentence.
            work: the step; cancelled when its time is up.
            more_s: seconds beyond the usual bound.
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
    """End this process after `limit_s`, unless it has ended by itself. For the main thread.

    An event loop and Python wait for threads when they end. A thread that hangs in a disk or in a driver
    cannot be ended otherwise, and a process without memory cannot start a thread that would do it.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.setitimer(signal.ITIMER_REAL, limit_s)
