"""Work that owes the core an event: whatever the work raises, wherever it waits, the event comes."""

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
"""Gives an event to the core, never raises, and tells whether the core took it or will."""


@dataclass(frozen=True, slots=True)
class OwedEvent:
    """One piece of work and the event that ends it, which is decided before the work begins.

    Attributes:
        kind: what its failures are counted under.
        what: what is being done, as the beginning of a sentence.
        work: does it, and returns the event of its success; None where it owes none any more.
        otherwise: the event of its failure, given what was raised; None where another duty has taken
            over, and answers: then nothing is said and nothing undone.
        undo: removes what failed work has left. It does not raise, and it ends within a bound.
        may_fail: a `KeepwarmError` of the outside is one of the ways in which it ends: said in one
            line, and no fault of the keeper.
    """

    kind: str
    what: str
    work: Callable[[], Awaitable[ev.Event | None]]
    otherwise: Callable[[BaseException], ev.Event | None]
    undo: Callable[[], Awaitable[None]] | None = None
    may_fail: bool = False


class OwedEvents:
    """Runs duties, a task each. Between the work and the event nothing can be lost."""

    def __init__(self, deliver: Deliver, faults: FaultCounts) -> None:
        self._deliver = deliver
        self._faults = faults
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def begin(self, duty: OwedEvent) -> asyncio.Task[None]:
        """Begin a duty; its task never fails, and not even a cancellation keeps its event back."""
        return self._start(self._run(duty))

    def aside(self, kind: str, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Begin work that owes nothing; what it raises is noted."""

        async def run() -> None:
            try:
                await work()
            except BaseException as error:
                if not self._closed:
                    self._faults.note(kind, what, error)

        self._start(run())

    async def close(self, limit_s: float) -> None:
        """Cancel everything; what does not end within the bound is left behind. No event follows."""
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

    async def _run(self, duty: OwedEvent) -> None:
        error: BaseException
        try:
            event = await duty.work()
            if event is None or self._deliver(event):
                return
            error = InternalError(f"{duty.what}: the core did not take that it succeeded")
            mark_noted(error)
        except BaseException as raised:
            error = raised
        if not self._closed:
            await self._fail(duty, error)

    async def _fail(self, duty: OwedEvent, error: BaseException) -> None:
        answer = duty.otherwise(error)
        if answer is None:
            return
        self._say(duty, error)
        if duty.undo is not None:
            try:
                await duty.undo()
            except BaseException as raised:
                self._faults.note(duty.kind, f"{duty.what}, then clearing up,", raised)
        self._deliver(answer)

    def _say(self, duty: OwedEvent, error: BaseException) -> None:
        foreign = isinstance(error, KeepwarmError) and not isinstance(error, InternalError)
        if duty.may_fail and foreign:
            if not is_noted(error):
                LOG.warning("%s failed: %s", duty.what, error)
        else:
            self._faults.note(duty.kind, duty.what, error)
