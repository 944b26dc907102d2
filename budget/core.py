"""The heart: one mutator, `handle(event, now) -> list[Action]`.

Requests wait by engine. A request for a resident engine with a free slot is granted at once, unless
the engine is draining for somebody who ranks before it. For every other engine the core looks for
bytes: free ones, then idle unpinned victims, and once a request has waited `max_wait_s` (or outranks
the requests in progress) engines in use are drained: they get no new leases on the claimed bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from budget import events as ev
from budget import soundness
from budget.actions import Action, SetTimer
from budget.balance import imbalances
from budget.desk import Desk
from budget.engines import EngineSpec, ModelEntry
from budget.errors import InternalError, KeepwarmError
from budget.forced import force
from budget.ledger import LedgerView
from budget.lives import Lives
from budget.pins import check_hint, check_pins, take_hint
from budget.policies.base import EvictionPolicy
from budget.policies.lru import Lru
from budget.prefetch import Prefetcher
from budget.reconfigure import adopt, check_configuration, reconfigure
from budget.requests import Requests
from budget.rule import Rule
from budget.scheduler import Scheduler
from budget.settings import Settings

NEVER: Final = math.inf


class BudgetCore:
    """One budget over every engine. Not thread-safe: a single writer feeds it events.

    Args:
        limits: bytes by device.
        models: the names callers use.
        engines: how each engine may be placed.
        policy: whom to evict; LRU when not given.
        settings: how long and how many may wait.

    Raises:
        ConfigError: a model names an unknown engine, or the pins do not fit together.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        models: Iterable[ModelEntry],
        engines: Iterable[EngineSpec],
        policy: EvictionPolicy | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._desk = Desk(limits, engines, policy or Lru(), settings or Settings())
        self._scheduler = Scheduler(self._desk)
        adopt(self._desk, models)
        check_pins(self._desk)
        self._faults = self._desk.faults
        self._now = -math.inf
        self._rules: dict[type[Any], Rule] = {
            **Requests(self._desk, self._scheduler).rules,
            **Lives(self._desk).rules,
            ev.HintGiven: Rule(self._admit_hint, self._hinted),
            ev.PlanDeclared: Rule(self._admit_plan, self._planned),
            ev.StageFinished: Rule(self._admit_staged, self._staged, certain=True),
            ev.Reconfigured: Rule(self._admit_configuration, self._reconfigured),
            ev.Started: Rule(_anything, self._started),
            ev.TimerDue: Rule(_anything, self._timer_rang),
        }

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Take one event; returns what is to be done, in order. The only way to change the core.

        An event that raises has changed nothing. One that does not has taken effect, whatever failed
        inside: that is told as a `Fault` among the actions.

        Args:
            event: what happened.
            now: seconds on any clock that never goes back.

        Raises:
            KeepwarmError: the event asks for what cannot be (`CallerError`, `AdmissionDenied`), or is
                impossible now (`InternalError`, a bug of whoever sent it).
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
            self._desk.faults.note(f"checking {type(event).__name__}", error)
        self._now = now
        desk = self._desk
        actions: list[Action] = []
        desk.actions = actions
        try:
            follows = apply(event, now)
        except Exception as error:
            force(desk, event, error, now)
            follows = True
        if follows:
            self._scheduler.pump(now)
        if self._faults.new:
            actions.extend(self._faults.take())
        at = desk.timers.to_arm()
        if at is not None:
            actions.append(SetTimer(at))
        return actions

    @property
    def desk(self) -> Desk:
        """The state, to be read; changing it is the events' business."""
        return self._desk

    @property
    def prefetcher(self) -> Prefetcher:
        """What looks ahead, to be read."""
        return self._scheduler.prefetcher

    def ledgers(self) -> list[LedgerView]:
        """The books of every device now."""
        return [ledger.view() for ledger in self._desk.residents.books]

    def check(self) -> list[str]:
        """What does not balance, in words: books, engines, leases, pins, queue, claims, plans.

        Empty is sound. Never raises; takes as long as some decisions.
        """
        return imbalances(self._desk)

    def validate(self) -> None:
        """Raise `InternalError` unless everything balances."""
        if found := self.check():
            raise InternalError("; ".join(found))

    # Hints, plans, configuration, time

    def _admit_hint(self, event: ev.HintGiven) -> None:
        soundness.hint(event)
        check_hint(self._desk, event)

    def _hinted(self, event: ev.HintGiven, now: float) -> bool:
        take_hint(self._desk, event, now)
        return True

    def _admit_plan(self, event: ev.PlanDeclared) -> None:
        soundness.plan(event)
        for model in event.models:
            if model not in self._desk.models:
                raise self._desk.why_unknown(model)

    def _planned(self, event: ev.PlanDeclared, _now: float) -> bool:
        models = self._desk.models
        order = [(model, models[model].engine_id) for model in event.models]
        self._desk.plans.declare(event.plan or event.client_id, order, owner=event.client_id)
        return True

    def _admit_staged(self, event: ev.StageFinished) -> None:
        soundness.ids(event.engine_id)
        soundness.figures(read_bytes=event.read_bytes)

    def _staged(self, event: ev.StageFinished, _now: float) -> bool:
        self._scheduler.prefetcher.staged(event.engine_id, event.read_bytes)
        return True

    def _admit_configuration(self, event: ev.Reconfigured) -> None:
        soundness.configuration(event)
        check_configuration(self._desk, event)

    def _reconfigured(self, event: ev.Reconfigured, now: float) -> bool:
        reconfigure(self._desk, event, now)
        return True

    def _started(self, _: ev.Started, _now: float) -> bool:
        self._desk.started = True
        return True

    def _timer_rang(self, _: ev.TimerDue, now: float) -> bool:
        self._desk.timers.passed(now)
        return True


def _anything(_: ev.Event) -> None:
    """An event that carries nothing can always be."""
