"""The core as JSON-serialisable data, for `keepwarm ps` and the keeper's status."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Any

from budget.actions import DecisionRecord
from budget.admission.pins import pins_of
from budget.admission.state import CoreState
from budget.admission.waits import waits_for
from budget.books.engines import NO_TIMEOUT, EngineRecord
from budget.books.queue import Waiting
from budget.books.states import State
from budget.core import BudgetCore

DECISIONS_SHOWN = 16
USES_SHOWN = 16


def snapshot(core: BudgetCore, now: float) -> dict[str, Any]:
    """All of the core that a reader may see, at one moment. Reads, and changes nothing.

    Args:
        core: the core.
        now: the time on the clock that its events carry, in seconds.

    Returns:
        `devices`, `engines` (those that hold bytes first), `queue` (in the order in which it will
        be served), `plans` (the next engines of all declared uses, by name), `declared` (the same
        with client, models and the state of each engine), `prefetch` (what looking ahead did),
        `decisions` (newest first) and `left_out` (parts of the core that keep failing). Bytes are
        ints, times are seconds before `now` (`_s`); times that do not apply and figures that are
        not known are None.
    """
    state = core.state
    engines = sorted(state.residents, key=lambda e: (not e.bookings, e.engine_id))
    recent = list(state.records)[: -DECISIONS_SHOWN - 1 : -1]
    return {
        "devices": _devices(core),
        "engines": [_engine(state, engine, now) for engine in engines],
        "queue": _queue(state, now),
        "plans": state.declared_uses.next_by_name(USES_SHOWN),
        "prefetch": {
            **asdict(state.prefetch),
            "mode": state.settings.prefetch,
            "staging": core.prefetcher.staging,
            "staged": sorted(core.prefetcher.lying_staged),
            "loaded": sorted(state.prefetched),
            "cores_are_busy": core.prefetcher.cores_are_busy,
        },
        "declared": _declared(core),
        "decisions": [record_to_wire(record) for record in recent],
        "left_out": sorted(state.faults.left_out),
    }


def record_to_wire(record: DecisionRecord) -> dict[str, Any]:
    """A decision record as JSON-serialisable data.

    `at` is on the clock of the events; `requested` and `free` are bytes by device.
    """
    return {
        "number": record.number,
        "at": record.at,
        "wanted": record.wanted,
        "reason": record.reason,
        "policy": record.policy,
        "followed": record.followed,
        "requested": dict(record.requested),
        "free": dict(record.free),
        "candidates": [
            {"engine": c.engine_id, "loss": c.loss, "bytes": dict(c.bookings)}
            for c in record.candidates
        ],
        "victims": list(record.victims),
        "draining": list(record.draining),
    }


def _devices(core: BudgetCore) -> list[dict[str, Any]]:
    books = core.state.residents.books
    return [
        {
            "device": view.device,
            "limit_bytes": view.limit_bytes,
            "ceiling_bytes": view.ceiling_bytes,
            "available_bytes": books[view.device].available_bytes,
            "protected_bytes": view.protected_bytes,
            "evictable_bytes": view.evictable_bytes,
            "leaving_bytes": view.leaving_bytes,
            "reserved_bytes": view.reserved_bytes,
            "free_bytes": view.free_bytes,
            "over_limit": books[view.device].over_limit,
            "low_memory": view.device in core.state.low,
        }
        for view in core.ledgers()
    ]


def _engine(state: CoreState, engine: EngineRecord, now: float) -> dict[str, Any]:
    idle_s = now - engine.idle_since if engine.state is State.IDLE else None
    backing_off = engine.state is State.FAILED and now < engine.retry_at
    return {
        "id": engine.engine_id,
        "models": state.models_of(engine.engine_id),
        "state": engine.state.value,
        "generation": engine.generation,
        "option_index": engine.option_index if engine.bookings else None,
        "bytes": dict(engine.bookings),
        "slots": engine.spec.slots,
        "leases": _leases(engine, now),
        "pinned": engine.pinned,
        "pinned_by": sorted(engine.pins),
        "pins": pins_of(state, sorted(engine.pins)),
        "waiting": engine.demand,
        "draining_for": engine.draining_for,
        "prefetched": engine.engine_id in state.prefetched,
        "leaves_when_idle": engine.leave_when_idle or engine.retired,
        "uses": engine.uses,
        "idle_s": idle_s,
        "loaded_s": now - engine.loaded_at if engine.resident else None,
        "keep_alive_s": engine.keep_alive_s,
        "keep_alive_left_s": _keep_alive_left(engine, now),
        "failures": engine.failures,
        "deaths": engine.deaths,
        "retry_in_s": engine.retry_at - now if backing_off else None,
        "last_error": engine.last_error,
    }


def _declared(core: BudgetCore) -> list[dict[str, Any]]:
    state = core.state
    names: dict[str, list[str]] = {}
    for model in sorted(state.models):
        names.setdefault(state.models[model].engine_id, []).append(model)
    return [
        {
            "plan": plan,
            "client": client,
            "left": len(order),
            "next": [
                {
                    "engine": engine_id,
                    "model": "+".join(names.get(engine_id, [engine_id])),
                    "state": _readiness(core, engine_id),
                }
                for engine_id in islice(order, USES_SHOWN)
            ],
        }
        for plan, client, order in state.declared_uses.declared()
    ]


def _readiness(core: BudgetCore, engine_id: str) -> str:
    """The state of an engine with declared uses; of an absent one, whether its file is staged."""
    if engine_id not in core.state.residents:
        return "gone"
    state: State = core.state.residents[engine_id].state
    if state is State.ABSENT and core.prefetcher.staging == engine_id:
        return "staging"
    if state is State.ABSENT and engine_id in core.prefetcher.lying_staged:
        return "staged"
    return str(state.value)


def _leases(engine: EngineRecord, now: float) -> list[dict[str, Any]]:
    return [
        {
            "request": lease.request_id,
            "client": lease.client_id,
            "model": lease.model,
            "slot": lease.slot,
            "priority": lease.priority,
            "since_s": now - lease.granted_at,
        }
        for lease in sorted(engine.leases.values(), key=lambda lease: lease.slot)
    ]


def _keep_alive_left(engine: EngineRecord, now: float) -> float | None:
    """Seconds until an engine's time-out; None while nothing counts down."""
    counting = engine.state is State.IDLE and engine.used_since_load and not engine.pinned
    if not counting or engine.keep_alive_s == NO_TIMEOUT:
        return None
    return max(0.0, engine.idle_since + engine.keep_alive_s - now)


def _queue(state: CoreState, now: float) -> list[dict[str, Any]]:
    max_wait_s = state.settings.max_wait_s
    in_order = sorted(state.queue, key=lambda request: request.rank(now, max_wait_s))
    return [
        {
            "request": request.request_id,
            "client": request.client_id,
            "model": request.model,
            "engine": request.engine_id,
            "want": request.want,
            "waited_s": now - request.arrived_at,
            "deadline_in_s": None if request.deadline is None else request.deadline - now,
            "priority": request.priority,
            "rank_reason": _rank_reason(request, now, max_wait_s),
            "waits_for": waits_for(state, request),
        }
        for request in in_order
    ]


def _rank_reason(request: Waiting, now: float, max_wait_s: float) -> str:
    if request.aged(now, max_wait_s):
        return f"waited max_wait of {max_wait_s:g} s: before all that came later"
    if request.priority:
        return f"priority {request.priority}, then by arrival"
    return "by arrival"
