"""Ends engines within a bound of time; an engine that does not end is killed."""

from __future__ import annotations

import asyncio
from typing import Any

from backends.base import Engine
from budget.errors import EngineTimeout
from shim.keeper import limits
from shim.keeper.shell.fault_counts import RAISED, FaultCounts


class Ender:
    """Ends engines. No method raises, and a cancellation of the caller does not cut one short."""

    def __init__(self, faults: FaultCounts) -> None:
        self._faults = faults

    async def end(self, engine: Engine, label: str, *, grace_s: float = 0.0) -> None:
        """Stop an engine: politely for `grace_s`, then by force; SIGKILL after a bound.

        Args:
            engine: it ends, and its files are removed; idempotent.
            label: the engine's name in the log.
            grace_s: how long it may finish its requests. 0 for an engine without leases.
        """
        what = f"stopping {label}"
        stopping = asyncio.get_running_loop().create_task(_stop(engine, grace_s))
        if await self.settle(stopping, grace_s + limits.STOP_S, what):
            if stopping.cancelled():
                error: BaseException | None = asyncio.CancelledError()
            else:
                error = stopping.exception()
        else:
            stopping.cancel()
            error = EngineTimeout(f"{label} did not end within {grace_s + limits.STOP_S:g} s.")
        if error is not None:
            self._faults.note("stop", what, error)
            self.kill(engine, label)

    def kill(self, engine: Engine, label: str) -> None:
        """SIGKILL to everything that an engine started, at once."""
        try:
            engine.kill()
        except RAISED as error:
            self._faults.note("stop", f"killing {label}", error)

    async def settle(self, task: asyncio.Task[Any], limit_s: float, what: str) -> bool:
        """Wait for a task, also while the caller is cancelled; returns whether it is done.

        The caller reads its outcome. A task that is not done goes on, and its exception is ignored.
        """
        loop, me = asyncio.get_running_loop(), asyncio.current_task()
        until = loop.time() + limit_s
        while not task.done():
            left_s = until - loop.time()
            if left_s <= 0.0:
                task.add_done_callback(seen)
                return False
            try:
                await asyncio.wait({task}, timeout=left_s)
            except BaseException as error:
                # The caller's next steps have to be done even after a failed wait.
                if not (isinstance(error, asyncio.CancelledError) and me and me.cancelling()):
                    self._faults.note("wait", what, error)
        return True


async def _stop(engine: Engine, grace_s: float) -> None:
    await engine.stop(grace_s=grace_s)


def seen(task: asyncio.Task[Any]) -> None:
    """A callback for a task that is not awaited: marks its exception as retrieved."""
    if not task.cancelled():
        task.exception()
