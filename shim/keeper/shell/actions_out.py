"""The shell around the core: a single writer that feeds it events and carries its actions out.

Everything here runs on one asyncio loop. `post` is the only way into the core; an action never
calls back into it directly, it begins a duty whose outcome is the next event. An action that cannot
even begin ends as the event that the core waits for, too: `answer_of` says which.
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
from shim.keeper.shell.owed_events import OwedEvents

LOG = logging.getLogger("keepwarm.keeper")

RING_AGAIN_S: Final = 1.0
"""After the core failed at the ring of its timer, or the timer could not be set."""

_MOVE_NO_BYTES: Final = frozenset((ev.RequestArrived, ev.LeaseEnded, ev.TimerDue))
"""Events after which the books are as they were, unless an action follows."""


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
        self.on_revoke: RevokeListener = lambda _client, _error: None
        self.on_yield: YieldListener = lambda _client, _lease: None
        self.stager = Stager(stage_bytes_per_s)
        self.closed = False
        """The keeper ends: no event counts any more, and no action is begun."""
        self._done: dict[str, Done] = {}
        self._behind: deque[ev.Event] = deque()
        self._owed_events: list[ev.Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # Events in

    def post(self, event: ev.Event) -> None:
        """One event into the core, and its actions on their way.

        Raises:
            KeepwarmError: the event asks for what cannot be; nothing changed.
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
        except RAISED as error:
            self.faults.note("history", f"noting what came of {type(event).__name__}", error)
        while self._behind:
            following = self._behind.popleft()
            if is_due(following, self.core):
                self.deliver(following)

    def deliver(self, event: ev.Event) -> bool:
        """One event into the core, whatever comes of it; returns whether the core took it or will."""
        try:
            self.post(event)
        except RAISED as error:
            self.faults.note("core", f"{type(event).__name__}", error)
            return False
        return True

    async def redeliver(self) -> None:
        """Give the core again what it has failed to take and still waits for."""
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

    def ask(self, request: ev.RequestArrived, done: Done) -> None:
        """Post a request; `done` is called once, now or later, with its grant or its error.

        Raises:
            KeepwarmError: the core failed at it, or the keeper ends; the request is not queued.
        """
        self._post_for(request.request_id, request, done)

    def ask_again(self, event: ev.LeaseYielded, done: Done) -> None:
        """A lease is given back; `done` is called once, when it is granted again or cannot be.

        Raises:
            KeepwarmError: as from `ask`. Where the core failed, the lease is over.
        """
        self._post_for(event.request_id, event, done)

    def _post_for(
        self, request_id: str, event: ev.RequestArrived | ev.LeaseYielded, done: Done
    ) -> None:
        if self.closed:
            raise KeeperUnavailable("The keeper ends.", hint="The next call starts another.")
        self._done[request_id] = done
        try:
            self.post(event)
        except InternalError:
            # Nothing should be left of it; what is left all the same ends unheard.
            self._done[request_id] = lambda _: None
            self.withdraw(request_id, event.client_id)
            self._done.pop(request_id, None)
            raise
        except BaseException:
            self._done.pop(request_id, None)
            raise

    def withdraw(self, request_id: str, client_id: str) -> None:
        """End a request, whether it waits or has its lease; no error where it is over."""
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
        """An action raised before any work on it began: what it owes follows."""
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
            # The client waits for an answer: this one can be told, where the outcome could not.
            done(InternalError(f"the outcome of the request could not be told: {text_of(error)}."))
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
            # The core counts on its timer all the same.
            self._timer = self._loop.call_later(RING_AGAIN_S, self._ring)

    def _start_staging(self, engine_id: str) -> None:
        entry = self.supervisor.catalog.engines[engine_id]
        record = StageStory(engine_id, entry.label, time.monotonic_ns())
        self.history.stagings.append(record)
        files = [Path(row[0]) for row in entry.stamp]
        self.owed_events.begin(self.stager.owed_event(engine_id, files, record))

    def close(self) -> None:
        """From now on the core is told nothing and nothing is begun; the engines live on."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()

    # The books over time

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
            self.history.sample(ns, view, by_model)


def _error(wire: Mapping[str, Any]) -> KeepwarmError:
    return error_from_wire(dict(wire))


def _whose(action: act.Action) -> str:
    """The request or the engine that an action is about, for the log."""
    return str(getattr(action, "request_id", None) or getattr(action, "engine_id", ""))
