"""The shell around the core: a single writer that feeds it events and carries its actions out.

Everything here runs on one asyncio loop. `post` is the only way into the core; an action never
calls back into it directly, it starts a task whose outcome is the next event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.errors import KeepwarmError, error_from_wire
from shim.keeper.catalog import Catalog
from shim.keeper.corrections import Corrections
from shim.keeper.faults import Faults
from shim.keeper.history import History, StageStory
from shim.keeper.kv_carry import KvCarrier
from shim.keeper.life import Done, EngineFactory, RevokeListener, YieldListener
from shim.keeper.lives import Lives
from shim.keeper.sayings import say
from shim.keeper.staging import Stager

LOG = logging.getLogger("keepwarm.keeper")


class Shell:
    """Carries out what the core decides."""

    def __init__(
        self,
        core: BudgetCore,
        catalog: Catalog,
        runtime: Path,
        factory: EngineFactory,
        corrections: Corrections,
        kv: KvCarrier,
        stage_bytes_per_s: float | None = None,
    ) -> None:
        self.core = core
        self.faults = Faults()
        self.history = History()
        self.lives = Lives(
            core, catalog, runtime, factory, corrections, kv, self.history, self.post, self._spawn
        )
        self.on_revoke: RevokeListener = lambda _client, _error: None
        self.on_yield: YieldListener = lambda _client, _lease: None
        self.stager = Stager(stage_bytes_per_s, self.post)
        self._done: dict[str, Done] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # Events in

    def post(self, event: ev.Event) -> None:
        """One event into the core, and its actions on their way.

        Raises:
            KeepwarmError: the event asks for what cannot be; nothing changed.
        """
        actions = self.core.handle(event, time.monotonic())
        changed = False
        for action in actions:
            changed |= self._carry_out(action)
        self.lives.expect_only(self.core.desk.claims)
        if changed or not isinstance(event, ev.RequestArrived | ev.LeaseEnded | ev.TimerDue):
            self._sample()

    def ask(self, request: ev.RequestArrived, done: Done) -> None:
        """Post a request; `done` is called once, now or later, with its grant or its error."""
        self._done[request.request_id] = done
        self.post(request)

    def ask_again(self, event: ev.LeaseYielded, done: Done) -> None:
        """A lease is given back; `done` is called once, when it is granted again or cannot be."""
        self._done[event.request_id] = done
        try:
            self.post(event)
        except KeepwarmError:
            self._done.pop(event.request_id, None)
            raise

    # Actions out

    def _carry_out(self, action: act.Action) -> bool:
        """Start one action; returns whether the books may have changed."""
        match action:
            case act.Grant():
                self._done.pop(action.request_id)(action)
            case act.Deny():
                self._done.pop(action.request_id)(_error(action.error))
            case act.Revoke():
                self.on_revoke(action.request_id, _error(action.error))
            case act.AskYield():
                LOG.info("lease %s is asked to yield for %s", action.request_id, action.wanted)
                self.on_yield(action.client_id, action.request_id)
            case act.SetTimer():
                self._set_timer(action.at)
            case act.Record() | act.Alert() | act.LowMemory():
                say(action)
            case act.Stage():
                self._start_staging(action.engine_id)
            case act.StopStaging():
                self.stager.stop(action.engine_id)
            case act.Prepare():
                self.lives.prepare(action)
            case act.Load():
                self.lives.load(action)
                return True
            case act.Unload():
                self._spawn(self.lives.unload(action))
                return True
        return False

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # The loop's clock is the one that `post` reads; a timer that rings a hair early would find
        # nothing due, so it is set a millisecond late.
        self._timer = self._loop.call_at(at + 0.001, self.post, ev.TimerDue())

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.critical("a keeper task failed", exc_info=error)

    def _start_staging(self, engine_id: str) -> None:
        entry = self.lives.catalog.engines[engine_id]
        story = StageStory(engine_id, entry.label, time.monotonic_ns())
        self.history.stagings.append(story)
        files = [Path(row[0]) for row in entry.stamp]
        self._spawn(self.stager.stage(engine_id, files, story))

    async def close(self, *, grace_s: float, keep_kv: bool) -> None:
        """End every engine; the core is not told, for it ends too.

        Args:
            grace_s: for each engine to end politely.
            keep_kv: leave the conversations that are saved to the next keeper.
        """
        if self._timer is not None:
            self._timer.cancel()
        mine = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await self.lives.close(grace_s=grace_s, keep_kv=keep_kv)

    # The books over time

    def _sample(self) -> None:
        ns = time.monotonic_ns()
        residents = self.core.desk.residents
        for view in self.core.ledgers():
            if view.device not in self.lives.catalog.limits:
                continue  # an RPC server's connection: no bytes
            by_model = {
                self.lives.catalog.label(engine.engine_id): amount
                for engine in residents.on_device(view.device)
                for device, amount in engine.bookings
                if device == view.device
            }
            self.history.sample(ns, view, by_model)


def _error(wire: Any) -> KeepwarmError:
    return error_from_wire(dict(wire))
