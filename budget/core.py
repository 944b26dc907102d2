"""The heart: one mutator, `handle(event, now) -> list[Action]`.

Requests wait by engine. A request for a resident engine with a free slot is granted at once, unless
the engine is draining for a request that ranks before it. For every other engine the core looks for
bytes: free ones, then idle unpinned victims, and once a request has waited `max_wait_s` (or
outranks the requests in progress) engines in use are drained: they get no new leases on the claimed
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from budget import events as ev
from budget.actions import Action, SetTimer
from budget.admission.pins import check_hint, check_pins, take_hint
from budget.admission.prefetch import Prefetcher
from budget.admission.scheduler import Scheduler
from budget.admission.state import CoreState
from budget.admission.waits import waits_for
from budget.books.engines import EngineSpec, ModelSpec
from budget.books.ledger import LedgerView
from budget.books.queue import Waiting
from budget.errors import InternalError, KeepwarmError
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.lru import Lru
from budget.handlers.client_requests import Requests
from budget.handlers.engine_events import EngineEvents
from budget.handlers.reconfigure import adopt, check_configuration, reconfigure
from budget.handlers.rule import EventRule
from budget.recovery import soundness
from budget.recovery.balance import imbalances
from budget.recovery.forced_effects import force
from budget.settings import CoreSettings

NEVER: Final = math.inf


class BudgetCore:
    """One budget over every engine. Not thread-safe: a single writer feeds it events.

    Args:
        limits: bytes by device.
        models: the names callers use.
        engines: how each engine may be placed.
        policy: which engines to evict; LRU when not given.
        settings: how long and how many may wait.

    Raises:
        ConfigError: a model names an unknown engine, or the pins do not fit together.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        models: Iterable[ModelSpec],
        engines: Iterable[EngineSpec],
        policy: EvictionPolicy | None = None,
        settings: CoreSettings | None = None,
    ) -> None:
        self._state = CoreState(limits, engines, policy or Lru(), settings or CoreSettings())
        self._scheduler = Scheduler(self._state)
        adopt(self._state, models)
        check_pins(self._state)
        self._faults = self._state.faults
        self._now = -math.inf
        self._rules: dict[type[Any], EventRule] = {
            **Requests(self._state, self._scheduler).rules,
            **EngineEvents(self._state).rules,
            ev.HintGiven: EventRule(self._admit_hint, self._hinted),
            ev.UsesDeclared: EventRule(self._admit_uses, self._uses_declared),
            ev.StageFinished: EventRule(self._admit_staged, self._staged, certain=True),
            ev.Reconfigured: EventRule(self._admit_configuration, self._reconfigured),
            ev.Started: EventRule(_anything, self._started),
            ev.TimerDue: EventRule(_anything, self._timer_rang),
        }

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Take one event; returns what is to be done, in order. The only way to change the core.

        An event that raises has changed nothing. One that does not has taken effect, whatever
        failed inside: a `Fault` among the actions says what failed.

        Args:
            event: what happened.
            now: seconds on any clock that never goes back.

        Raises:
            KeepwarmError: the event asks for what cannot be (`CallerError`, `AdmissionDenied`), or is
                impossible now (`InternalError`, a bug in the part that sent it).
        """
        rule = self._rules.get(type(event))
        if rule is None:
            raise InternalError(f"{event!r} is no event.")
        if not self._now <= now < NEVER:
            raise InternalError(f"the clock went from {self._now} to {now!r}")
        admit, apply, certain = rule
        try:
            admit(event)
        except KeepwarmError:
            raise
        except Exception as error:
            if not certain:
                raise InternalError(f"{event!r} cannot be checked: {error!r}") from error
            self._state.faults.note(f"checking {type(event).__name__}", error)
        self._now = now
        state = self._state
        actions: list[Action] = []
        state.actions = actions
        try:
            follows = apply(event, now)
        except Exception as error:
            force(state, event, error, now)
            follows = True
        if follows:
            self._scheduler.pump(now)
        if type(event) is ev.RequestArrived and event.request_id in state.queue.by_id:
            self._note_wait(state.queue.by_id[event.request_id])
        if self._faults.new:
            actions.extend(self._faults.take())
        at = state.timers.to_arm()
        if at is not None:
            actions.append(SetTimer(at))
        return actions

    def _note_wait(self, request: Waiting) -> None:
        """Keep what a request waits for that has just come; no decision depends on it."""
        try:
            request.waited_for = waits_for(self._state, request)
        except Exception as error:
            self._faults.note("telling what a request waits for", error)

    @property
    def state(self) -> CoreState:
        """The state, to be read; changing it is the events' business."""
        return self._state

    @property
    def prefetcher(self) -> Prefetcher:
        """The part that looks ahead, to be read."""
        return self._scheduler.prefetcher

    def ledgers(self) -> list[LedgerView]:
        """The books of every device now."""
        return [ledger.view() for ledger in self._state.residents.books]

    def check(self) -> list[str]:
        """What does not balance, in words: books, engines, leases, pins, queue, claims, declared uses.

        Empty is sound. Never raises; takes as long as some decisions.
        """
        return imbalances(self._state)

    def validate(self) -> None:
        """Raise `InternalError` unless everything balances."""
        if found := self.check():
            raise InternalError("; ".join(found))

    # Hints, declared uses, configuration, time

    def _admit_hint(self, event: ev.HintGiven) -> None:
        soundness.hint(event)
        check_hint(self._state, event)

    def _hinted(self, event: ev.HintGiven, now: float) -> bool:
        take_hint(self._state, event, now)
        return True

    def _admit_uses(self, event: ev.UsesDeclared) -> None:
        soundness.uses(event)
        for model in event.models:
            if model not in self._state.models:
                raise self._state.why_unknown(model)

    def _uses_declared(self, event: ev.UsesDeclared, _now: float) -> bool:
        models = self._state.models
        order = [(model, models[model].engine_id) for model in event.models]
        name = event.plan or event.client_id
        uses = self._state.declared_uses
        uses.declare(name, order, owner=event.client_id, any_order=event.any_order)
        return True

    def _admit_staged(self, event: ev.StageFinished) -> None:
        soundness.ids(event.engine_id)
        soundness.figures(read_bytes=event.read_bytes)

    def _staged(self, event: ev.StageFinished, _now: float) -> bool:
        self._scheduler.prefetcher.staged(event.engine_id, event.read_bytes)
        return True

    def _admit_configuration(self, event: ev.Reconfigured) -> None:
        soundness.configuration(event)
        check_configuration(self._state, event)

    def _reconfigured(self, event: ev.Reconfigured, now: float) -> bool:
        reconfigure(self._state, event, now)
        return True

    def _started(self, _: ev.Started, _now: float) -> bool:
        self._state.started = True
        return True

    def _timer_rang(self, _: ev.TimerDue, now: float) -> bool:
        self._state.timers.passed(now)
        return True


def _anything(_: ev.Event) -> None:
    """Admit an event that carries nothing: it is always possible."""
