"""The heart: one mutator, `handle(event, now) -> list[Action]`.

Requests wait by engine. A request for a resident engine with a free slot is granted at once, unless
the engine is draining for somebody who ranks before it. For every other engine the core looks for
bytes: free ones, then idle unpinned victims, and once a request has waited `max_wait_s` (or outranks
the requests in progress) engines in use are drained: they get no new leases on the claimed bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from budget import events as ev
from budget.actions import Action, Deny, SetTimer
from budget.desk import Desk
from budget.engines import EngineRecord, EngineSpec, ModelEntry
from budget.errors import InternalError, KeepwarmError, LoadFailed, error_from_wire
from budget.ledger import LedgerView
from budget.lives import Lives
from budget.pins import check_pins, pin_for, take_hint
from budget.policies.base import EvictionPolicy
from budget.policies.lru import Lru
from budget.preemption import take_yielded
from budget.prefetch import Prefetcher
from budget.reconfigure import reconfigure
from budget.refusals import (
    foreign_lease,
    never_fits,
    queue_full,
    too_late,
    withdrawn,
)
from budget.residency import DORMANT, State
from budget.scheduler import Scheduler
from budget.settings import Settings
from budget.waiting import Waiting


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
        self._numbers = 0
        self._desk.adopt(models)
        check_pins(self._desk)
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            ev.Started: self._on_started,
            ev.RequestArrived: self._on_request,
            ev.RequestCancelled: self._on_cancelled,
            ev.ClientGone: self._on_client_gone,
            ev.LeaseEnded: self._on_lease_ended,
            ev.LeaseTaken: self._on_lease_taken,
            ev.LeaseYielded: self._on_lease_yielded,
            ev.HintGiven: self._on_hint,
            ev.PlanDeclared: self._on_plan,
            ev.StageFinished: self._on_stage_finished,
            ev.Reconfigured: self._on_reconfigured,
            ev.TimerDue: self._on_timer,
            **Lives(self._desk, self._scheduler).handlers,
        }

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Take one event; returns what is to be done, in order. The only way to change the core.

        Args:
            event: what happened.
            now: seconds on any clock that never goes back.

        Raises:
            CallerError, AdmissionDenied: the event asks for what cannot be; nothing changed.
            InternalError: the event is impossible now, a bug of whoever sent it.
        """
        actions: list[Action] = []
        self._desk.actions = actions
        self._handlers[type(event)](event, now)
        at = self._desk.timers.to_arm()
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

    def validate(self) -> None:
        """Raise `InternalError` unless books, engines, leases, queue and claims agree."""
        desk = self._desk
        desk.residents.check()
        leased = {r: e for e in desk.residents for r in e.leases}
        if leased != desk.leases:
            raise InternalError(f"leases {desk.leases} against engines' {leased}")
        pinned: dict[str, set[str]] = {}
        for model in desk.holders:
            pinned.setdefault(desk.models[model].engine_id, set()).add(model)
        for engine in desk.residents:
            if engine.pins != pinned.get(engine.engine_id, set()):
                raise InternalError(f"{engine!r} has pins {engine.pins} against {pinned}")
            waits = desk.queue.of(engine.engine_id)
            if engine.demand != (len(waits) if waits else 0):
                raise InternalError(f"{engine!r} has demand {engine.demand} against {waits}")
            if engine.draining_for is not None:
                claim = desk.claims.get(engine.draining_for)
                if claim is None or engine.engine_id not in claim.draining:
                    raise InternalError(f"{engine!r} drains for nobody: {claim}")
        for claim in desk.claims:
            if claim.engine.state not in (*DORMANT, State.EVICTING):
                raise InternalError(f"{claim.engine!r} is claimed for although it is there")

    # Requests

    def _on_request(self, event: ev.RequestArrived, now: float) -> None:
        desk = self._desk
        if desk.queue.get(event.request_id) or event.request_id in desk.leases:
            raise InternalError(f"request {event.request_id!r} arrived twice")
        entry = desk.models.get(event.model)
        if entry is None:
            self._deny(event, desk.why_unknown(event.model))
            return
        engine = desk.residents[entry.engine_id]
        if engine.open and event.want == "lease":
            self._grant_at_once(event, entry, engine, now)
            return
        request = self._request(event, entry, engine, now)
        at_once = desk.grantable(engine, request, now)
        error = self._impossible(engine, request, now)
        if error is None and not at_once:
            error = self._cannot_wait(request, now)
        if error is not None:
            self._deny(event, error)
            return
        planned = self._use(event, engine, now)
        if request.want == "pin":
            pin_for(desk, engine, request)
        if at_once:
            desk.grant(engine, request, now)
        else:
            desk.enqueue(request)
        if request.want == "pin" or not at_once or planned:
            self._scheduler.pump(now)

    def _grant_at_once(
        self, event: ev.RequestArrived, entry: ModelEntry, engine: EngineRecord, now: float
    ) -> None:
        """What most requests are: the engine is there, with a free slot, and nobody is before them."""
        self._numbers += 1
        planned = self._use(event, engine, now)
        priority = entry.priority if event.priority is None else event.priority
        self._desk.grant_at_once(engine, event, priority, self._numbers, now)
        if planned:
            self._scheduler.pump(now)

    def _use(self, event: ev.RequestArrived, engine: EngineRecord, now: float) -> bool:
        """Tell plans and policy of a use; returns whether anything is planned."""
        plans = self._desk.plans
        planned = bool(plans)
        plans.used(event.plan or event.client_id, engine.engine_id)
        self._desk.policy.used(engine.engine_id, now)
        return planned

    def _request(
        self, event: ev.RequestArrived, entry: ModelEntry, engine: EngineRecord, now: float
    ) -> Waiting:
        self._numbers += 1
        return Waiting(
            event.request_id,
            event.client_id,
            event.model,
            entry.engine_id,
            event.want,
            entry.priority if event.priority is None else event.priority,
            event.deadline,
            now,
            self._numbers,
            engine.generation if engine.resident else -1,
            preemptible=event.preemptible,
            persist=event.persist,
        )

    def _impossible(
        self, engine: EngineRecord, request: Waiting, now: float
    ) -> KeepwarmError | None:
        """Why waiting would be in vain, or None. Asks and changes nothing."""
        fitting = self._desk.fitting
        if not engine.spec.options:
            return LoadFailed(f"{request.model} has no placement.", hint="See `keepwarm plan`.")
        if request.want == "pin" and not fitting.pinnable(engine):
            return never_fits(request.model, fitting.shortfall(engine))
        if not engine.resident and not fitting.feasible(engine):
            return never_fits(request.model, fitting.shortfall(engine))
        if engine.state is State.FAILED and engine.setbacks > 1 and now < engine.retry_at:
            return error_from_wire(dict(engine.last_error or {}))
        return None

    def _cannot_wait(self, request: Waiting, now: float) -> KeepwarmError | None:
        """Why a request that would have to wait may not, or None."""
        desk = self._desk
        if request.deadline is not None and request.deadline <= now:
            return too_late(request.model, 0.0)
        waiting, limit = len(desk.queue), desk.settings.max_queue
        if waiting >= limit:
            return queue_full("", waiting, limit)
        own = desk.models[request.model].max_queue
        per_model = desk.settings.max_queue_per_model if own is None else own
        if per_model is not None:
            mine = desk.queue.of(request.engine_id) or ()
            waiting = sum(1 for other in mine if other.model == request.model)
            if waiting >= per_model:
                return queue_full(request.model, waiting, per_model)
        return None

    def _deny(self, event: ev.RequestArrived, error: KeepwarmError) -> None:
        self._desk.actions.append(Deny(event.request_id, event.client_id, error.to_wire()))

    def _on_cancelled(self, event: ev.RequestCancelled, now: float) -> None:
        request = self._desk.queue.get(event.request_id)
        if request is not None:
            self._desk.end(request, withdrawn(request.model), now)
            self._scheduler.pump(now)

    def _on_client_gone(self, event: ev.ClientGone, now: float) -> None:
        desk = self._desk
        for request in desk.queue:
            if request.client_id == event.client_id:
                desk.end(request, withdrawn(request.model), now)
        for request_id, engine in list(desk.leases.items()):
            if engine.leases[request_id].client_id == event.client_id:
                desk.give_back(engine, request_id, now)
        for request_id in [
            r for r, told in desk.revoked.items() if told.client_id == event.client_id
        ]:
            del desk.revoked[request_id]
        for model in desk.holders.gone(event.client_id):
            desk.unpin(desk.residents[desk.models[model].engine_id], model)
        desk.plans.withdraw(event.client_id)
        self._scheduler.pump(now)

    def _on_lease_ended(self, event: ev.LeaseEnded, now: float) -> None:
        told = self._desk.revoked.get(event.request_id)
        if told is not None and told.client_id == event.client_id:
            del self._desk.revoked[event.request_id]
            return
        engine = self._desk.leases.get(event.request_id)
        if engine is None or engine.leases[event.request_id].client_id != event.client_id:
            raise foreign_lease(event.request_id, event.client_id)
        engine.deaths = 0
        self._desk.give_back(engine, event.request_id, now)
        self._scheduler.pump(now)

    def _on_lease_taken(self, event: ev.LeaseTaken, now: float) -> None:
        engine = self._desk.leases.get(event.request_id)
        if engine is not None:
            self._desk.revoke(engine, event.request_id, event.error)
            self._desk.give_back(engine, event.request_id, now)
            self._scheduler.pump(now)

    def _on_lease_yielded(self, event: ev.LeaseYielded, now: float) -> None:
        take_yielded(self._desk, event, now)
        self._scheduler.pump(now)

    # Hints, plans, configuration, time

    def _on_hint(self, event: ev.HintGiven, now: float) -> None:
        take_hint(self._desk, event, now)
        self._scheduler.pump(now)

    def _on_plan(self, event: ev.PlanDeclared, now: float) -> None:
        for model in event.models:
            if model not in self._desk.models:
                raise self._desk.why_unknown(model)
        models = self._desk.models
        order = [models[model].engine_id for model in event.models]
        self._desk.plans.declare(event.plan or event.client_id, order, owner=event.client_id)
        self._scheduler.pump(now)

    def _on_stage_finished(self, event: ev.StageFinished, now: float) -> None:
        self._scheduler.prefetcher.staged(event.engine_id, event.read_bytes)
        self._scheduler.pump(now)

    def _on_reconfigured(self, event: ev.Reconfigured, now: float) -> None:
        reconfigure(self._desk, event, now)
        self._scheduler.pump(now)

    def _on_started(self, _: ev.Started, now: float) -> None:
        self._scheduler.load_pins = True
        self._scheduler.pump(now)

    def _on_timer(self, _: ev.TimerDue, now: float) -> None:
        self._desk.timers.passed(now)
        self._scheduler.pump(now)
