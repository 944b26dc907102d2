"""Work that owes the core an event: the event is delivered also if the work raises or is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from budget import events as ev
from budget.errors import InternalError, KeepwarmError
from shim.keeper.shell.fault_counts import FaultCounts, is_noted, mark_noted

LOG = logging.getLogger("keepwarm.keeper")

Deliver = Callable[[ev.Event], bool]
"""Gives an event to the core, never raises, and returns whether the core took it or will take it."""


@dataclass(frozen=True, slots=True)
class OwedEvent:
    """One piece of work and the event that ends it, which is decided before the work begins.

    Attributes:
        kind: what its failures are counted under.
        what: the work in words, as the beginning of a sentence.
        work: does it, and returns the event of its success; None if it owes none any more.
        otherwise: returns the event of its failure, given what was raised. None if other work has
            taken over the event: then nothing is logged and nothing undone.
        undo: removes what failed work has left. It does not raise, and it ends within a bound.
        may_fail: whether a `KeepwarmError` other than `InternalError` is an ordinary outcome, which is
            logged in one line and not counted as a fault of the keeper.
    """

    kind: str
    what: str
    work: Callable[[], Awaitable[ev.Event | None]]
    otherwise: Callable[[BaseException], ev.Event | None]
    undo: Callable[[], Awaitable[None]] | None = None
    may_fail: bool = False


class OwedEvents:
    """Runs each piece of work in a task of its own, and delivers its event."""

    def __init__(self, deliver: Deliver, faults: FaultCounts) -> None:
        self._deliver = deliver
        self._faults = faults
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(self, owed: OwedEvent) -> asyncio.Task[None]:
        """Begin work that owes an event. Its task never fails; a cancelled task delivers the event, too."""
        return self._start(self._run(owed))

    def aside(self, kind: str, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin work that owes no event; what it raises is noted."""

        async def run() -> None:
            try:
                await work()
            except BaseException as error:
                if not self._closed:
                    self._faults.note(kind, what, error)

        self._start(run())

    async def close(self, limit_s: float) -> None:
        """Cancel all work. Tasks that do not end within the bound are left behind. No event follows."""
        self._closed = True
        mine = {task for task in self._tasks if task is not asyncio.current_task()}
        for task in mine:
            task.cancel()
        if mine:
            await asyncio.wait(mine, timeout=limit_s)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, owed: OwedEvent) -> None:
        error: BaseException
        try:
            event = await owed.work()
            if event is None or self._deliver(event):
                return
            error = InternalError(f"{owed.what}: the core did not take that it succeeded")
            mark_noted(error)
        except BaseException as raised:
            error = raised
        if not self._closed:
            await self._fail(owed, error)

    async def _fail(self, owed: OwedEvent, error: BaseException) -> None:
        answer = owed.otherwise(error)
        if answer is None:
            return
        self._say(owed, error)
        if owed.undo is not None:
            try:
                await owed.undo()
            except BaseException as raised:
                self._faults.note(owed.kind, f"{owed.what}, then clearing up,", raised)
        self._deliver(answer)

    def _say(self, owed: OwedEvent, error: BaseException) -> None:
        foreign = isinstance(error, KeepwarmError) and not isinstance(error, InternalError)
        if owed.may_fail and foreign:
            if not is_noted(error):
                LOG.warning("%s failed: %s", owed.what, error)
        else:
            self._faults.note(owed.kind, owed.what, error)
