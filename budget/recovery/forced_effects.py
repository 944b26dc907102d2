"""What an event must bring about, whatever fails inside: its effect on the facts, and nothing else.

Used after an event's own handler has failed half-way; `budget.recovery.repair` makes the tables follow. The
functions here touch single facts, so that they have little to fail at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from budget import events as ev
from budget.actions import Deny, Revoke
from budget.admission.refusals import withdrawn
from budget.admission.state import CoreState
from budget.books.engines import EngineRecord
from budget.books.queue import Waiting
from budget.books.states import EVICTING, LOADING, RESIDENT, State
from budget.errors import KeepwarmError
from budget.handlers.backoff import after_failure
from budget.handlers.reconfigure import longest_keep_alives
from budget.recovery.balance import imbalances
from budget.recovery.repair import broke_down, mend


def force(state: CoreState, event: Any, error: Exception, now: float) -> None:
    """Give an event its effect after its handler failed, put the rest right, and note the fault."""
    found: list[str] = []
    try:
        FORCED[type(event)](state, event, error, now)
        found = imbalances(state)
        mend(state, now)
    except Exception as again:
        state.faults.note(f"forcing {type(event).__name__}", again)
    state.faults.note(type(event).__name__, error, found)


# Requests and leases


def _request(state: CoreState, event: ev.RequestArrived, error: Exception, _now: float) -> None:
    """Refuse a request, unless it has its outcome already."""
    if _is_told(state, event.request_id):
        return
    _end_lease(state, event.request_id)
    state.queue.by_id.pop(event.request_id, None)
    _deny(state, event.request_id, event.client_id, broke_down(error))


def _cancelled(
    state: CoreState, event: ev.RequestCancelled, _error: Exception, _now: float
) -> None:
    _withdraw(state, state.queue.by_id.pop(event.request_id, None))


def _client_gone(state: CoreState, event: ev.ClientGone, _error: Exception, _now: float) -> None:
    client = event.client_id
    for request in [r for r in state.queue.by_id.values() if r.client_id == client]:
        _withdraw(state, state.queue.by_id.pop(request.request_id))
    for engine in state.residents:
        for request_id in [r for r, x in engine.leases.items() if x.client_id == client]:
            del engine.leases[request_id]
    for request_id in [r for r, told in state.revoked.items() if told.client_id == client]:
        del state.revoked[request_id]
    state.holders.gone(client)
    state.declared_uses.withdraw(client)


def _lease_ended(state: CoreState, event: ev.LeaseEnded, _error: Exception, _now: float) -> None:
    state.revoked.pop(event.request_id, None)
    engine = _end_lease(state, event.request_id)
    if engine is not None:
        engine.deaths = 0


def _lease_taken(state: CoreState, event: ev.LeaseTaken, _error: Exception, _now: float) -> None:
    engine = _holder(state, event.request_id)
    if engine is not None:
        _revoke(state, engine, event.request_id, event.error)


def _lease_yielded(state: CoreState, event: ev.LeaseYielded, error: Exception, _now: float) -> None:
    """End the lease; the request is refused unless it waits again or has its outcome."""
    state.revoked.pop(event.request_id, None)
    _end_lease(state, event.request_id)
    if event.request_id not in state.queue.by_id and not _is_told(state, event.request_id):
        _deny(state, event.request_id, event.client_id, broke_down(error))


def _is_told(state: CoreState, request_id: str) -> bool:
    return any(getattr(action, "request_id", None) == request_id for action in state.actions)


def _deny(state: CoreState, request_id: str, client_id: str, error: KeepwarmError) -> None:
    state.actions.append(Deny(request_id, client_id, error.to_wire()))


def _withdraw(state: CoreState, request: Waiting | None) -> None:
    if request is not None:
        _deny(state, request.request_id, request.client_id, withdrawn(request.model))


def _holder(state: CoreState, request_id: str) -> EngineRecord | None:
    return next((e for e in state.residents if request_id in e.leases), None)


def _end_lease(state: CoreState, request_id: str) -> EngineRecord | None:
    engine = _holder(state, request_id)
    if engine is not None:
        del engine.leases[request_id]
    return engine


def _revoke(
    state: CoreState, engine: EngineRecord, request_id: str, error: Mapping[str, Any]
) -> None:
    lease = engine.leases.pop(request_id)
    if not _is_told(state, request_id):
        told = Revoke(request_id, lease.client_id, error)
        state.revoked[request_id] = told
        state.actions.append(told)


# Engines and devices


def _load_finished(state: CoreState, event: ev.LoadFinished, _error: Exception, now: float) -> None:
    engine = state.residents[event.engine_id]
    if engine.state is LOADING:
        engine.state = State.IDLE
        engine.loaded_at = engine.idle_since = engine.last_used = now
        engine.used_since_load, engine.failures, engine.last_error = False, 0, None
    if event.bookings is not None and engine.resident:
        engine.bookings = event.bookings


def _load_failed(state: CoreState, event: ev.LoadEndedBadly, _error: Exception, now: float) -> None:
    engine = state.residents[event.engine_id]
    if engine.state is LOADING:
        engine.state = State.FAILED
        engine.failures += 1
        _set_back(state, engine, event.error, now)


def _engine_died(state: CoreState, event: ev.EngineGone, _error: Exception, now: float) -> None:
    engine = state.residents[event.engine_id]
    for request_id in list(engine.leases):
        _revoke(state, engine, request_id, event.error)
    if engine.state in RESIDENT:
        engine.state = State.FAILED
        engine.deaths += 1
        _set_back(state, engine, event.error, now)


def _set_back(state: CoreState, engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
    engine.min_option, engine.leave_when_idle = 0, False
    after_failure(engine, error, now)
    for request in list(state.queue.by_id.values()):
        if request.engine_id == engine.engine_id:
            del state.queue.by_id[request.request_id]
            state.actions.append(Deny(request.request_id, request.client_id, error))


def _unload_finished(
    state: CoreState, event: ev.UnloadFinished, _error: Exception, _now: float
) -> None:
    engine = state.residents[event.engine_id]
    if engine.state is EVICTING:
        engine.state = State.ABSENT
        engine.leave_when_idle = False


def _engine_measured(
    state: CoreState, event: ev.EngineMeasured, _error: Exception, _now: float
) -> None:
    engine = state.residents[event.engine_id]
    if engine.resident:
        engine.bookings = event.bookings


def _estimated(state: CoreState, event: ev.EngineEstimated, _error: Exception, _now: float) -> None:
    engine = state.residents[event.engine_id]
    engine.specify(replace(engine.spec, options=event.options))


def _device_measured(
    state: CoreState, event: ev.DeviceMeasured, _error: Exception, _now: float
) -> None:
    state.residents.books[event.device].available_bytes = event.available_bytes


def _staged(state: CoreState, event: ev.StageFinished, _error: Exception, _now: float) -> None:
    if state.staging is not None and state.staging.engine_id == event.engine_id:
        state.staging = None


# Hints, declared uses, configuration, time


def _hint(state: CoreState, event: ev.HintGiven, _error: Exception, _now: float) -> None:
    engine = state.residents[state.models[event.model].engine_id]
    if event.kind == "unpin":
        state.holders.unpin(event.model)
    elif event.kind == "unload":
        engine.leave_when_idle = engine.resident
    else:
        engine.released = engine.resident


def _uses_declared(
    state: CoreState, event: ev.UsesDeclared, _error: Exception, _now: float
) -> None:
    """Drop the declared uses that could not be taken over whole."""
    state.declared_uses.drop(event.plan or event.client_id)


def _reconfigured(state: CoreState, event: ev.Reconfigured, _error: Exception, _now: float) -> None:
    state.settings = event.settings or state.settings
    for spec in event.engines:
        if spec.engine_id not in state.residents:
            state.residents.add(spec)
    named = {spec.engine_id for spec in event.engines}
    for engine in state.residents:
        engine.retired = engine.engine_id not in named
    state.models = {entry.name: entry for entry in event.models}
    state.errors = {model: dict(error) for model, error in event.errors.items()}
    state.holders.configure({entry.name for entry in event.models if entry.pinned})
    for engine_id, keep_alive_s in longest_keep_alives(event.models).items():
        state.residents[engine_id].keep_alive_s = keep_alive_s
    for device, limit in event.limits.items():
        ledger = state.residents.books[device]
        ledger.limit_bytes = limit
        ledger.ceiling_bytes = min(limit, ledger.ceiling_bytes)


def _started(state: CoreState, _event: ev.Started, _error: Exception, _now: float) -> None:
    state.started = True


def _timer(_state: CoreState, _event: ev.TimerDue, _error: Exception, _now: float) -> None:
    """Nothing to force: every timer is set anew after a fault."""


FORCED: Final[dict[type[Any], Callable[[CoreState, Any, Exception, float], None]]] = {
    ev.RequestArrived: _request,
    ev.RequestCancelled: _cancelled,
    ev.ClientGone: _client_gone,
    ev.LeaseEnded: _lease_ended,
    ev.LeaseTaken: _lease_taken,
    ev.LeaseYielded: _lease_yielded,
    ev.LoadFinished: _load_finished,
    ev.LoadEndedBadly: _load_failed,
    ev.EngineGone: _engine_died,
    ev.UnloadFinished: _unload_finished,
    ev.EngineMeasured: _engine_measured,
    ev.EngineEstimated: _estimated,
    ev.DeviceMeasured: _device_measured,
    ev.StageFinished: _staged,
    ev.HintGiven: _hint,
    ev.UsesDeclared: _uses_declared,
    ev.Reconfigured: _reconfigured,
    ev.Started: _started,
    ev.TimerDue: _timer,
}
"""One for every event; a test holds that none is missing."""
