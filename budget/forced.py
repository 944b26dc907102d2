"""What an event must bring about, whatever fails inside: its effect on the facts, and nothing else.

Used after an event's own handler has failed half-way; `budget.mending` makes the tables follow. The
functions here touch single facts, so that they have little to fail at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from budget import events as ev
from budget.actions import Deny, Revoke
from budget.backoff import after_setback
from budget.balance import imbalances
from budget.desk import Desk
from budget.engines import EngineRecord
from budget.errors import KeepwarmError
from budget.mending import broke_down, mend
from budget.reconfigure import longest_keep_alives
from budget.refusals import withdrawn
from budget.residency import EVICTING, LOADING, RESIDENT, State
from budget.waiting import Waiting


def force(desk: Desk, event: Any, error: Exception, now: float) -> None:
    """Give an event its effect after its handler failed, put the rest right, and tell of the fault."""
    found: list[str] = []
    try:
        FORCED[type(event)](desk, event, error, now)
        found = imbalances(desk)
        mend(desk, now)
    except Exception as again:
        desk.faults.note(f"forcing {type(event).__name__}", again)
    desk.faults.note(type(event).__name__, error, found)


# Requests and leases


def _request(desk: Desk, event: ev.RequestArrived, error: Exception, _now: float) -> None:
    """It is refused, unless it has its outcome already."""
    if _is_told(desk, event.request_id):
        return
    _end_lease(desk, event.request_id)
    desk.queue.by_id.pop(event.request_id, None)
    _deny(desk, event.request_id, event.client_id, broke_down(error))


def _cancelled(desk: Desk, event: ev.RequestCancelled, _error: Exception, _now: float) -> None:
    _withdraw(desk, desk.queue.by_id.pop(event.request_id, None))


def _client_gone(desk: Desk, event: ev.ClientGone, _error: Exception, _now: float) -> None:
    client = event.client_id
    for request in [r for r in desk.queue.by_id.values() if r.client_id == client]:
        _withdraw(desk, desk.queue.by_id.pop(request.request_id))
    for engine in desk.residents:
        for request_id in [r for r, x in engine.leases.items() if x.client_id == client]:
            del engine.leases[request_id]
    for request_id in [r for r, told in desk.revoked.items() if told.client_id == client]:
        del desk.revoked[request_id]
    desk.holders.gone(client)
    desk.plans.withdraw(client)


def _lease_ended(desk: Desk, event: ev.LeaseEnded, _error: Exception, _now: float) -> None:
    desk.revoked.pop(event.request_id, None)
    engine = _end_lease(desk, event.request_id)
    if engine is not None:
        engine.deaths = 0


def _lease_taken(desk: Desk, event: ev.LeaseTaken, _error: Exception, _now: float) -> None:
    engine = _holder(desk, event.request_id)
    if engine is not None:
        _revoke(desk, engine, event.request_id, event.error)


def _lease_yielded(desk: Desk, event: ev.LeaseYielded, error: Exception, _now: float) -> None:
    """It waits again, or ends where that was not reached."""
    desk.revoked.pop(event.request_id, None)
    _end_lease(desk, event.request_id)
    if event.request_id not in desk.queue.by_id and not _is_told(desk, event.request_id):
        _deny(desk, event.request_id, event.client_id, broke_down(error))


def _is_told(desk: Desk, request_id: str) -> bool:
    return any(getattr(action, "request_id", None) == request_id for action in desk.actions)


def _deny(desk: Desk, request_id: str, client_id: str, error: KeepwarmError) -> None:
    desk.actions.append(Deny(request_id, client_id, error.to_wire()))


def _withdraw(desk: Desk, request: Waiting | None) -> None:
    if request is not None:
        _deny(desk, request.request_id, request.client_id, withdrawn(request.model))


def _holder(desk: Desk, request_id: str) -> EngineRecord | None:
    return next((e for e in desk.residents if request_id in e.leases), None)


def _end_lease(desk: Desk, request_id: str) -> EngineRecord | None:
    engine = _holder(desk, request_id)
    if engine is not None:
        del engine.leases[request_id]
    return engine


def _revoke(desk: Desk, engine: EngineRecord, request_id: str, error: Mapping[str, Any]) -> None:
    lease = engine.leases.pop(request_id)
    if not _is_told(desk, request_id):
        told = Revoke(request_id, lease.client_id, error)
        desk.revoked[request_id] = told
        desk.actions.append(told)


# Engines and devices


def _load_finished(desk: Desk, event: ev.LoadFinished, _error: Exception, now: float) -> None:
    engine = desk.residents[event.engine_id]
    if engine.state is LOADING:
        engine.state = State.IDLE
        engine.loaded_at = engine.idle_since = engine.last_used = now
        engine.used_since_load, engine.failures, engine.last_error = False, 0, None
    if event.bookings is not None and engine.resident:
        engine.bookings = event.bookings


def _load_failed(desk: Desk, event: ev.LoadFailed, _error: Exception, now: float) -> None:
    engine = desk.residents[event.engine_id]
    if engine.state is LOADING:
        engine.state = State.FAILED
        engine.failures += 1
        _set_back(desk, engine, event.error, now)


def _engine_died(desk: Desk, event: ev.EngineDied, _error: Exception, now: float) -> None:
    engine = desk.residents[event.engine_id]
    for request_id in list(engine.leases):
        _revoke(desk, engine, request_id, event.error)
    if engine.state in RESIDENT:
        engine.state = State.FAILED
        engine.deaths += 1
        _set_back(desk, engine, event.error, now)


def _set_back(desk: Desk, engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
    engine.min_option, engine.leave_when_idle = 0, False
    after_setback(engine, error, now)
    for request in list(desk.queue.by_id.values()):
        if request.engine_id == engine.engine_id:
            del desk.queue.by_id[request.request_id]
            desk.actions.append(Deny(request.request_id, request.client_id, error))


def _unload_finished(desk: Desk, event: ev.UnloadFinished, _error: Exception, _now: float) -> None:
    engine = desk.residents[event.engine_id]
    if engine.state is EVICTING:
        engine.state = State.ABSENT
        engine.leave_when_idle = False


def _engine_measured(desk: Desk, event: ev.EngineMeasured, _error: Exception, _now: float) -> None:
    engine = desk.residents[event.engine_id]
    if engine.resident:
        engine.bookings = event.bookings


def _estimated(desk: Desk, event: ev.EngineEstimated, _error: Exception, _now: float) -> None:
    engine = desk.residents[event.engine_id]
    engine.specify(replace(engine.spec, options=event.options))


def _device_measured(desk: Desk, event: ev.DeviceMeasured, _error: Exception, _now: float) -> None:
    desk.residents.books[event.device].available_bytes = event.available_bytes


def _staged(desk: Desk, event: ev.StageFinished, _error: Exception, _now: float) -> None:
    if desk.staging is not None and desk.staging.engine_id == event.engine_id:
        desk.staging = None


# Hints, plans, configuration, time


def _hint(desk: Desk, event: ev.HintGiven, _error: Exception, _now: float) -> None:
    engine = desk.residents[desk.models[event.model].engine_id]
    if event.kind == "unpin":
        desk.holders.unpin(event.model)
    elif event.kind == "unload":
        engine.leave_when_idle = engine.resident
    else:
        engine.released = engine.resident


def _plan(desk: Desk, event: ev.PlanDeclared, _error: Exception, _now: float) -> None:
    """What could not be taken in is not half there."""
    desk.plans.drop(event.plan or event.client_id)


def _reconfigured(desk: Desk, event: ev.Reconfigured, _error: Exception, _now: float) -> None:
    desk.settings = event.settings or desk.settings
    for spec in event.engines:
        if spec.engine_id not in desk.residents:
            desk.residents.add(spec)
    named = {spec.engine_id for spec in event.engines}
    for engine in desk.residents:
        engine.retired = engine.engine_id not in named
    desk.models = {entry.name: entry for entry in event.models}
    desk.errors = {model: dict(error) for model, error in event.errors.items()}
    desk.holders.configure({entry.name for entry in event.models if entry.pinned})
    for engine_id, keep_alive_s in longest_keep_alives(event.models).items():
        desk.residents[engine_id].keep_alive_s = keep_alive_s
    for device, limit in event.limits.items():
        ledger = desk.residents.books[device]
        ledger.limit_bytes = limit
        ledger.ceiling_bytes = min(limit, ledger.ceiling_bytes)


def _started(desk: Desk, _event: ev.Started, _error: Exception, _now: float) -> None:
    desk.started = True


def _timer(_desk: Desk, _event: ev.TimerDue, _error: Exception, _now: float) -> None:
    """Every timer is set anew after a fault."""


FORCED: Final[dict[type[Any], Callable[[Desk, Any, Exception, float], None]]] = {
    ev.RequestArrived: _request,
    ev.RequestCancelled: _cancelled,
    ev.ClientGone: _client_gone,
    ev.LeaseEnded: _lease_ended,
    ev.LeaseTaken: _lease_taken,
    ev.LeaseYielded: _lease_yielded,
    ev.LoadFinished: _load_finished,
    ev.LoadFailed: _load_failed,
    ev.EngineDied: _engine_died,
    ev.UnloadFinished: _unload_finished,
    ev.EngineMeasured: _engine_measured,
    ev.EngineEstimated: _estimated,
    ev.DeviceMeasured: _device_measured,
    ev.StageFinished: _staged,
    ev.HintGiven: _hint,
    ev.PlanDeclared: _plan,
    ev.Reconfigured: _reconfigured,
    ev.Started: _started,
    ev.TimerDue: _timer,
}
"""One for every event; a test holds that none is missing."""
