"""The shell around the core: a single writer that feeds it events and carries its actions out.

Everything here runs on one asyncio loop. `post` is the only way into the core. An action never calls
back into it directly; it begins work that owes an event. An action that cannot even begin also ends with
the event that the core waits for, as `answer_of` defines it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.errors import InternalError, KeeperUnavailable, KeepwarmError, error_from_wire
from shim.keeper.catalog.catalog import Catalog
from shim.keeper.catalog.corrections import Corrections
from shim.keeper.engines.loading import Loads
from shim.keeper.engines.running_engine import (
    Done,
    EngineFactory,
    Outcome,
    RevokeListener,
    YieldListener,
)
from shim.keeper.engines.staging import Stager
from shim.keeper.engines.supervisor import Supervisor
from shim.keeper.kv.carry import KvCarrier
from shim.keeper.shell.core_log import say
from shim.keeper.shell.events_in import Feed
from shim.keeper.shell.failed_actions import MUST_ARRIVE, answer_of, is_due
from shim.keeper.shell.fault_counts import RAISED, FaultCounts, text_of
from shim.keeper.shell.history import History, StageStory
from shim.keeper.shell.notes import Notes
from shim.keeper.shell.owed_events import OwedEvents
from shim.keeper.shell.stories import Stories

LOG = logging.getLogger("keepwarm.keeper")

RING_AGAIN_S: Final = 1.0
"""Seconds until the timer rings again after the core failed at its event, or it could not be set."""

_MOVE_NO_BYTES: Final = frozenset((ev.RequestArrived, ev.LeaseEnded, ev.TimerDue))
"""Events that leave the books unchanged, unless an action follows."""


class Shell:
    """Feeds events to the core, and carries out its actions."""

    def __init__(
        self,
        core: BudgetCore,
        catalog: Catalog,
        runtime: Path,
        factory: EngineFactory,
        corrections: Corrections,
        kv: KvCarrier,
        stage_bytes_per_s: float | None = None,
        faults: FaultCounts | None = None,
    ) -> None:
        self.core = core
        self.faults = faults or FaultCounts()
        self.feed = Feed(core, self.faults)
        self.history = History()
        self.owed_events = OwedEvents(self.deliver, self.faults)
        self.supervisor = Supervisor(
            core, catalog, corrections, kv, self.history, self.post, self.owed_events, self.faults
        )
        self.loads = Loads(
            self.supervisor, runtime, factory, self.history, self.owed_events, self.faults
        )
        self.notes = Notes(self.history, self._label)
        self.stories = Stories(self.history, self._label, self._backend)
        self.on_revoke: RevokeListener = lambda _client, _error: None
        self.on_yield: YieldListener = lambda _client, _lease: None
        self.stager = Stager(stage_bytes_per_s)
        self.closed = False
        """Whether the keeper ends: then no event is taken, and no action is begun."""
        self._done: dict[str, Done] = {}
        self._behind: deque[ev.Event] = deque()
        self._owed_events: list[ev.Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # Events in

    def post(self, event: ev.Event) -> None:
        """Give an event to the core, and begin the actions that follow.

        Raises:
            KeepwarmError: the event asks for the impossible; nothing changed.
        """
        if self.closed:
            return
        try:
            actions = self.feed.handle(event)
        except InternalError:
            if not isinstance(event, MUST_ARRIVE):
                raise
            self._owed_events.append(event)
            return
        self._follow(event, actions)

    def _follow(self, event: ev.Event, actions: list[act.Action]) -> None:
        changed = False
        for action in actions:
            try:
                changed |= self._carry_out(action)
            except RAISED as error:
                self._not_begun(action, error)
        try:
            self.loads.expect_only(self.core.state.claims)
            if changed or type(event) not in _MOVE_NO_BYTES:
                self._sample()
            self.notes.saw(event, actions)
            if self.stories.listeners:
                self.stories.saw(event, actions)
        except RAISED as error:
            self.faults.note("history", f"noting what came of {type(event).__name__}", error)
        while self._behind:
            following = self._behind.popleft()
            if is_due(following, self.core):
                self.deliver(following)

    def deliver(self, event: ev.Event) -> bool:
        """Give an event to the core without raising; returns whether the core took it or will take it."""
        try:
            self.post(event)
        except RAISED as error:
            self.faults.note("core", f"{type(event).__name__}", error)
            return False
        return True

    async def redeliver(self) -> None:
        """Give the core the events again that it failed to take and still waits for."""
        owed, self._owed_events = self._owed_events, []
        for event in owed:
            if self.closed or not is_due(event, self.core):
                continue
            try:
                actions = self.feed.handle(event, again=True)
            except KeepwarmError:
                self._owed_events.append(event)
            else:
                self._follow(event, actions)

    def ask(self, event: ev.RequestArrived | ev.LeaseYielded, done: Done) -> None:
        """Post a request, or yield its lease; `done` is called once, now or later, with grant or error.

        Raises:
            KeepwarmError: the core failed at it, or the keeper ends. The request is not queued, and a
                lease that was to be yielded is over.
        """
        if self.closed:
            raise KeeperUnavailable("The keeper ends.", hint="The next call starts another.")
        request_id = event.request_id
        self._done[request_id] = done
        try:
            self.post(event)
        except InternalError:
            # No outcome should be pending for it; a pending one is dropped without a notice.
            self._done[request_id] = lambda _: None
            self.withdraw(request_id, event.client_id)
            self._done.pop(request_id, None)
            raise
        except BaseException:
            self._done.pop(request_id, None)
            raise

    def withdraw(self, request_id: str, client_id: str) -> None:
        """End a request, whether it waits or has its lease; no effect if it is over."""
        for event in (ev.RequestCancelled(request_id), ev.LeaseEnded(request_id, client_id)):
            if is_due(event, self.core):
                self.deliver(event)

    # Actions out

    def _carry_out(self, action: act.Action) -> bool:
        """Begin one action; returns whether the books may have changed."""
        match action:
            case act.Grant():
                self._tell(action.request_id, action)
            case act.Deny():
                self._tell(action.request_id, _error(action.error))
            case act.Revoke():
                self.on_revoke(action.request_id, _error(action.error))
            case act.AskYield():
                LOG.info("lease %s is asked to yield for %s", action.request_id, action.wanted)
                self.on_yield(action.client_id, action.request_id)
            case act.SetTimer():
                self._set_timer(action.at)
            case act.Record() | act.Alert() | act.LowMemory() | act.Fault():
                self._say(action)
            case act.StageFile():
                self._start_staging(action.engine_id)
            case act.StopStaging():
                self.stager.stop(action.engine_id)
            case act.Prepare():
                self.loads.prepare(action)
            case act.StartLoad():
                self.loads.load(action)
                return True
            case act.Unload():
                self.supervisor.unload(action)
                return True
        return False

    def _not_begun(self, action: act.Action, error: BaseException) -> None:
        """Deliver the event that an action owes which raised before any work on it began."""
        name = type(action).__name__
        self.faults.note(name.lower(), f"{name} {_whose(action)}", error)
        answer = answer_of(action, error)
        if answer is not None:
            self._behind.append(answer)
        if isinstance(action, act.Unload):
            self.supervisor.drop(action.engine_id, action.generation)
        if isinstance(action, act.SetTimer):
            self._timer = self._loop.call_later(RING_AGAIN_S, self._ring)

    def _tell(self, request_id: str, outcome: Outcome) -> None:
        done = self._done.pop(request_id)
        try:
            done(outcome)
        except RAISED as error:
            # The client waits for an answer, so it gets an error in place of the outcome.
            done(
                InternalError(
                    f"the outcome of the request could not be reported: {text_of(error)}."
                )
            )
            raise

    def _say(self, action: act.Record | act.Alert | act.LowMemory | act.Fault) -> None:
        if isinstance(action, act.Fault):
            self.feed.survived(action)
        else:
            say(action)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # The loop's clock is the one that `post` reads; a timer that rings a hair early would find
        # nothing due, so it is set a millisecond late.
        self._timer = self._loop.call_at(at + 0.001, self._ring)

    def _ring(self) -> None:
        if not self.deliver(ev.TimerDue()):
            # The core still needs its timer.
            self._timer = self._loop.call_later(RING_AGAIN_S, self._ring)

    def _start_staging(self, engine_id: str) -> None:
        entry = self.supervisor.catalog.engines[engine_id]
        record = StageStory(engine_id, entry.label, time.monotonic_ns())
        self.history.stagings.append(record)
        files = [Path(row[0]) for row in entry.stamp]
        self.owed_events.begin(self.stager.owed_event(engine_id, files, record))

    def close(self) -> None:
        """Take no more events and begin no more actions; the engines go on."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()

    # The books over time

    def _label(self, engine_id: str) -> str:
        return self.supervisor.catalog.label(engine_id)

    def _backend(self, engine_id: str) -> str:
        entry = self.supervisor.catalog.engines.get(engine_id)
        return entry.backend if entry else ""

    def _sample(self) -> None:
        ns = time.monotonic_ns()
        residents = self.core.state.residents
        for view in self.core.ledgers():
            if view.device not in self.supervisor.catalog.limits:
                continue  # an RPC server's connection: no bytes
            by_model = {
                self.supervisor.catalog.label(engine.engine_id): amount
                for engine in residents.on_device(view.device)
                for device, amount in engine.bookings
                if device == view.device
            }
            free = residents.books[view.device].available_bytes
            self.history.sample(ns, view, by_model, free)


def _error(wire: Mapping[str, Any]) -> KeepwarmError:
    return error_from_wire(dict(wire))


def _whose(action: act.Action) -> str:
    """The request or the engine that an action is about, for the log."""
    return str(getattr(action, "request_id", None) or getattr(action, "engine_id", ""))
