"""The heart: one mutator, `handle(event, now) -> list[Action]`.

Requests wait by engine. A request for a resident engine with a free slot is granted at once, unless
the engine is draining for somebody who ranks before it. For every other engine the core looks for
bytes: free ones, then idle unpinned victims, and once a request has waited `max_wait_s` (or outranks
the requests in progress) engines in use are drained: they get no new leases on the claimed bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from budget import events as ev
from budget.actions import Action, Deny, Revoke, SetTimer
from budget.desk import Desk, Settings
from budget.engines import EngineRecord, EngineSpec, ModelEntry
from budget.errors import ConfigError, InternalError, KeepwarmError, LoadFailed, error_from_wire
from budget.footprint import HOST
from budget.ledger import LedgerView
from budget.policies.base import EvictionPolicy
from budget.policies.lru import Lru
from budget.refusals import (
    foreign_lease,
    is_awaited,
    is_pinned,
    never_fits,
    pins_do_not_fit,
    queue_full,
    too_late,
    unknown_model,
    withdrawn,
)
from budget.residency import State, Trigger
from budget.residents import DORMANT
from budget.scheduler import Scheduler
from budget.waiting import Waiting

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
DEATHS_BEFORE_DENIAL = 2
"""An engine that died this often without serving anybody is not restarted for those who wait."""


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
        self._revoked: dict[str, str] = {}
        self._plans: dict[str, tuple[str, ...]] = {}
        self._numbers = 0
        self._desk.adopt(models)
        self._check_pins()
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            ev.Started: self._on_started,
            ev.RequestArrived: self._on_request,
            ev.RequestCancelled: self._on_cancelled,
            ev.ClientGone: self._on_client_gone,
            ev.LeaseEnded: self._on_lease_ended,
            ev.LoadFinished: self._on_load_finished,
            ev.LoadFailed: self._on_load_failed,
            ev.EngineDied: self._on_engine_died,
            ev.UnloadFinished: self._on_unload_finished,
            ev.EngineMeasured: self._on_engine_measured,
            ev.EngineEstimated: self._on_engine_estimated,
            ev.DeviceMeasured: self._on_device_measured,
            ev.HintGiven: self._on_hint,
            ev.PlanDeclared: self._on_plan,
            ev.Reconfigured: self._on_reconfigured,
            ev.TimerDue: self._on_timer,
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
        for engine in desk.residents:
            waits = desk.queue.of(engine.engine_id)
            if engine.demand != (len(waits) if waits else 0):
                raise InternalError(f"{engine!r} has demand {engine.demand} against {waits}")
            if engine.draining_for is not None:
                claim = desk.admission.claims.get(engine.draining_for)
                if claim is None or engine.engine_id not in claim.draining:
                    raise InternalError(f"{engine!r} drains for nobody: {claim}")
        for claim in desk.admission.claims.values():
            if claim.engine.state not in (*DORMANT, State.EVICTING):
                raise InternalError(f"{claim.engine!r} is claimed for although it is there")

    # Requests

    def _on_request(self, event: ev.RequestArrived, now: float) -> None:
        desk = self._desk
        if desk.queue.get(event.request_id) or event.request_id in desk.leases:
            raise InternalError(f"request {event.request_id!r} arrived twice")
        entry = desk.models.get(event.model)
        if entry is None:
            self._deny(event, unknown_model(event.model, desk.models))
            return
        engine = desk.residents[entry.engine_id]
        request = self._request(event, entry, engine, now)
        at_once = desk.grantable(engine, request, now)
        error = self._impossible(engine, request, now)
        if error is None and not at_once:
            error = self._cannot_wait(request, now)
        if error is not None:
            self._deny(event, error)
            return
        desk.admission.policy.used(engine.engine_id, now)
        if request.want == "pin":
            self._pin(engine, request)
        if at_once:
            desk.grant(engine, request, now)
        else:
            desk.enqueue(request)
        if request.want == "pin" or not at_once:
            self._scheduler.pump(now)

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
        )

    def _impossible(
        self, engine: EngineRecord, request: Waiting, now: float
    ) -> KeepwarmError | None:
        """Why waiting would be in vain, or None. Asks and changes nothing."""
        desk = self._desk
        if not engine.spec.options:
            return LoadFailed(f"{request.model} has no placement.", hint="See `keepwarm plan`.")
        admission = desk.admission
        if request.want == "pin" and not admission.pinnable(engine):
            return never_fits(request.model, admission.shortfall(engine))
        if not engine.resident and not admission.feasible(engine):
            return never_fits(request.model, admission.shortfall(engine))
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
        per_model = desk.settings.max_queue_per_model
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
        self._revoked = {r: c for r, c in self._revoked.items() if c != event.client_id}
        self._plans.pop(event.client_id, None)
        self._scheduler.pump(now)

    def _on_lease_ended(self, event: ev.LeaseEnded, now: float) -> None:
        if self._revoked.get(event.request_id) == event.client_id:
            del self._revoked[event.request_id]
            return
        engine = self._desk.leases.get(event.request_id)
        if engine is None or engine.leases[event.request_id].client_id != event.client_id:
            raise foreign_lease(event.request_id, event.client_id)
        engine.deaths = 0
        self._desk.give_back(engine, event.request_id, now)
        self._scheduler.pump(now)

    # Engines

    def _alive(self, engine_id: str, generation: int) -> EngineRecord:
        if engine_id not in self._desk.residents:
            raise InternalError(f"event for unknown engine {engine_id!r}")
        engine = self._desk.residents[engine_id]
        if engine.generation != generation:
            raise InternalError(
                f"event for {engine_id} generation {generation}, which is over: {engine!r}",
                hint="Story, oldest first: " + engine.tell(),
            )
        return engine

    def _on_load_finished(self, event: ev.LoadFinished, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        self._desk.residents.loaded(engine, now)
        if engine.state is State.IDLE:
            engine.failures = 0
            engine.last_error = None
            self._desk.restless[engine.engine_id] = engine
            if not (engine.demand or engine.pins):
                # Whoever it was loaded for is gone: its keep_alive begins now.
                engine.used_since_load = True
            if engine.immune_until:
                engine.immune_until = now + self._desk.settings.max_wait_s
            if event.bookings is not None:
                self._correct(engine, event.bookings)
        self._scheduler.pump(now)

    def _on_load_failed(self, event: ev.LoadFailed, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        self._desk.residents.gone(engine, Trigger.LOAD_FAILED, now)
        if engine.state is State.FAILED:
            smaller = self._smaller_option(engine, event) if event.out_of_memory else None
            if smaller is not None:
                engine.min_option = smaller
            else:
                engine.failures += 1
                engine.min_option = 0
                self._failed(engine, event.error, now)
                self._end_all(engine, event.error, now)
            self._drop_if_retired(engine)
        self._scheduler.pump(now)

    def _smaller_option(self, engine: EngineRecord, event: ev.LoadFailed) -> int | None:
        """The next option that asks the device which refused for less; tried once.

        Where the device is not known, it is any but the host, which alone cannot be spared.
        """
        if engine.min_option:
            return None
        tried = dict(engine.option.bookings)
        named = [device for device in tried if device == event.refused_device]
        suspects = named or [device for device in tried if device != HOST] or list(tried)
        first = engine.option_index + 1
        while later := self._desk.admission.feasible(engine, first):
            for index in later:
                asked = dict(engine.spec.options[index].bookings)
                if all(asked.get(device, 0) < tried[device] for device in suspects):
                    return index
            first = max(later) + 1
        return None

    def _failed(self, engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
        """Remember a failure: the next try of a pinned engine waits longer each time.

        From the second in a row on requests are refused until then, too.
        """
        engine.last_error = dict(error)
        patience = FIRST_BACKOFF_S * 2.0 ** min(engine.setbacks - 1, 16)
        engine.retry_at = now + min(MAX_BACKOFF_S, patience)

    def _end_all(self, engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
        for request in list(self._desk.queue.of(engine.engine_id) or ()):
            self._desk.end(request, error_from_wire(dict(error)), now)

    def _on_engine_died(self, event: ev.EngineDied, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        for request_id, lease in engine.leases.items():
            del self._desk.leases[request_id]
            self._revoked[request_id] = lease.client_id
            self._desk.actions.append(Revoke(request_id, lease.client_id, event.error))
        engine.leases.clear()
        self._desk.admission.drained(engine)
        self._desk.residents.gone(engine, Trigger.DIED, now)
        if engine.state is State.FAILED:
            engine.deaths += 1
            self._failed(engine, event.error, now)
            if engine.deaths >= DEATHS_BEFORE_DENIAL:
                self._end_all(engine, event.error, now)
            self._drop_if_retired(engine)
        self._scheduler.pump(now)

    def _on_unload_finished(self, event: ev.UnloadFinished, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        self._desk.residents.gone(engine, Trigger.UNLOADED, now)
        self._drop_if_retired(engine)
        self._scheduler.pump(now)

    def _on_engine_measured(self, event: ev.EngineMeasured, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        if engine.resident:
            self._correct(engine, event.bookings)
            self._scheduler.pump(now)

    def _correct(self, engine: EngineRecord, bookings: tuple[tuple[str, int], ...]) -> None:
        self._desk.residents.correct(engine, bookings)
        self._desk.unsettled.update(device for device, _ in bookings)

    def _on_engine_estimated(self, event: ev.EngineEstimated, now: float) -> None:
        if event.engine_id not in self._desk.residents:
            raise InternalError(f"unknown engine {event.engine_id!r} was estimated")
        engine = self._desk.residents[event.engine_id]
        self._desk.residents.estimate(engine, event.options)
        # What was promised to it was counted in the bytes of before.
        self._desk.admission.drop(event.engine_id)
        self._desk.admission.place_pins()
        self._scheduler.pump(now)

    def _on_device_measured(self, event: ev.DeviceMeasured, now: float) -> None:
        if event.device not in self._desk.residents.books:
            raise InternalError(f"unknown device {event.device!r} was measured")
        ledger = self._desk.residents.books[event.device]
        ledger.ceiling_bytes = min(ledger.limit_bytes, max(0, event.available_bytes))
        self._desk.unsettled.add(event.device)
        self._scheduler.pump(now)

    # Pins, hints, plans, time

    def _pin(self, engine: EngineRecord, request: Waiting) -> None:
        request.added_pin = request.model not in engine.pins
        self._desk.runtime_pins.add(request.model)
        self._desk.pin(engine, request.model)
        self._desk.admission.place_pins()

    def _on_hint(self, event: ev.HintGiven, now: float) -> None:
        desk = self._desk
        entry = desk.models.get(event.model)
        if entry is None:
            raise unknown_model(event.model, desk.models)
        engine = desk.residents[entry.engine_id]
        if event.kind == "unload":
            self._unload(engine, event.model, now)
        if event.kind == "unpin":
            self._desk.runtime_pins.discard(event.model)
            desk.residents.unpin(engine, event.model)
            if not engine.demand and not engine.pins:
                desk.admission.drop(engine.engine_id)
            desk.restless[engine.engine_id] = engine
        elif event.kind == "release" and engine.state not in DORMANT:
            engine.released = True
        self._scheduler.pump(now)

    def _unload(self, engine: EngineRecord, model: str, now: float) -> None:
        if engine.pins:
            raise is_pinned(model, engine.pins)
        if engine.state is State.LOADING and engine.demand:
            raise is_awaited(model, engine.demand)
        if engine.state is State.LOADING:
            self._desk.evict(engine, now, "asked to leave")
        elif engine.resident:
            engine.leave_when_idle = True
            self._desk.restless[engine.engine_id] = engine

    def _on_plan(self, event: ev.PlanDeclared, now: float) -> None:
        for model in event.models:
            if model not in self._desk.models:
                raise unknown_model(model, self._desk.models)
        if event.models:
            self._plans[event.client_id] = event.models
        else:
            self._plans.pop(event.client_id, None)
        self._scheduler.pump(now)

    def _on_started(self, _: ev.Started, now: float) -> None:
        self._scheduler.load_pins = True
        self._scheduler.pump(now)

    def _on_timer(self, _: ev.TimerDue, now: float) -> None:
        self._desk.timers.passed(now)
        self._scheduler.pump(now)

    # Configuration

    def _on_reconfigured(self, event: ev.Reconfigured, now: float) -> None:
        # A core of the new configuration alone says whether it holds, before anything changes here.
        desk = self._desk
        self._check_new(event)
        kept = {spec.engine_id for spec in event.engines}
        for spec in event.engines:
            if spec.engine_id not in desk.residents:
                desk.residents.add(spec)
            elif len(spec.options) == len(desk.residents[spec.engine_id].spec.options):
                desk.residents.estimate(desk.residents[spec.engine_id], spec.options)
        for engine in list(desk.residents):
            engine.retired = engine.engine_id not in kept
            for model in list(engine.pins):
                desk.residents.unpin(engine, model)
        desk.adopt(event.models)
        self._desk.runtime_pins &= desk.models.keys()
        for model in sorted(self._desk.runtime_pins):
            desk.pin(desk.residents[desk.models[model].engine_id], model)
        self._requeue(now)
        for engine in list(desk.residents):
            desk.restless[engine.engine_id] = engine
            self._drop_if_retired(engine)
        for claim in list(desk.admission.claims.values()):
            if not (claim.engine.demand or claim.engine.pins):
                desk.admission.drop(claim.engine.engine_id)
        desk.admission.place_pins()
        for device, limit in event.limits.items():
            ledger = desk.residents.books[device]
            unmeasured = ledger.ceiling_bytes == ledger.limit_bytes
            ledger.ceiling_bytes = limit if unmeasured else min(limit, ledger.ceiling_bytes)
            ledger.limit_bytes = limit
            desk.unsettled.add(device)
        self._scheduler.pump(now)

    def _check_new(self, event: ev.Reconfigured) -> None:
        """Raise `ConfigError` unless the new configuration, with the pins of callers, holds."""
        devices = {ledger.device for ledger in self._desk.residents.books}
        if set(event.limits) != devices:
            raise ConfigError(
                f"The devices changed from {sorted(devices)} to {sorted(event.limits)}.",
                hint="Restart the keeper to change its devices.",
            )
        pins = self._desk.runtime_pins
        models = [replace(m, pinned=m.pinned or m.name in pins) for m in event.models]
        # A core of the new configuration alone says whether it holds, before anything changes.
        BudgetCore(event.limits, models, event.engines)

    def _requeue(self, now: float) -> None:
        """Those who wait follow their model to its new engine; a model that is gone ends them."""
        desk = self._desk
        for request in desk.queue:
            entry = desk.models.get(request.model)
            if entry is None:
                desk.end(request, unknown_model(request.model, desk.models), now)
                continue
            request.added_pin = request.added_pin and not entry.pinned
            if entry.engine_id != request.engine_id:
                after = desk.residents[entry.engine_id]
                desk.dequeue(request)
                request.engine_id = after.engine_id
                request.seen_generation = after.generation if after.resident else -1
                desk.enqueue(request)

    def _drop_if_retired(self, engine: EngineRecord) -> None:
        if engine.retired and engine.state in DORMANT:
            self._desk.admission.drop(engine.engine_id)
            self._desk.restless.pop(engine.engine_id, None)
            self._desk.residents.drop(engine)

    def _check_pins(self) -> None:
        for engine in self._desk.residents.pinned:
            if not engine.spec.options:
                names = ", ".join(sorted(engine.pins))
                raise ConfigError(f"{names} is pinned and has no placement.", hint="Unpin it.")
        stuck = self._desk.admission.place_pins()
        if stuck is not None:
            raise pins_do_not_fit(stuck.pins, self._desk.admission.shortfall(stuck))
