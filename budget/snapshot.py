"""The core as JSON-serialisable data, for `keepwarm ps`: devices, engines, queue, decisions."""

from __future__ import annotations

from typing import Any

from budget.actions import DecisionRecord
from budget.core import BudgetCore
from budget.desk import Desk
from budget.engines import NO_TIMEOUT, EngineRecord
from budget.residency import State


def snapshot(core: BudgetCore, now: float) -> dict[str, Any]:
    """Everything that can be seen of the core at one moment. Bytes are ints, times seconds ago."""
    desk = core.desk
    return {
        "devices": [_device(core, row.device) for row in core.ledgers()],
        "engines": [_engine(desk, engine, now) for engine in desk.residents],
        "queue": [
            {
                "request": waiting.request_id,
                "model": waiting.model,
                "want": waiting.want,
                "priority": waiting.priority,
                "waited_s": round(now - waiting.arrived_at, 6),
                "aged": waiting.aged(now, desk.settings.max_wait_s),
            }
            for waiting in desk.queue
        ],
        "decisions": [record_to_wire(record) for record in desk.records],
    }


def _device(core: BudgetCore, device: str) -> dict[str, Any]:
    ledger = core.desk.residents.books[device]
    view = ledger.view()
    return {
        "device": device,
        "limit_bytes": view.limit_bytes,
        "ceiling_bytes": view.ceiling_bytes,
        "reserved_bytes": view.reserved_bytes,
        "protected_bytes": view.protected_bytes,
        "evictable_bytes": view.evictable_bytes,
        "leaving_bytes": view.leaving_bytes,
        "free_bytes": view.free_bytes,
        "over_limit": ledger.over_limit,
    }


def _engine(desk: Desk, engine: EngineRecord, now: float) -> dict[str, Any]:
    names = [m.name for m in desk.models.values() if m.engine_id == engine.engine_id]
    idle = engine.state is State.IDLE
    waits = desk.queue.of(engine.engine_id)
    return {
        "id": engine.engine_id,
        "models": names,
        "state": engine.state.value,
        "generation": engine.generation,
        "option": engine.option_index,
        "bytes": dict(engine.bookings),
        "slots": engine.spec.slots,
        "pinned_by": sorted(engine.pins),
        "leases": [
            {
                "request": lease.request_id,
                "client": lease.client_id,
                "model": lease.model,
                "slot": lease.slot,
                "since_s": round(now - lease.granted_at, 6),
            }
            for lease in engine.leases.values()
        ],
        "waiting": len(waits) if waits else 0,
        "uses": engine.uses,
        "loaded_s": round(now - engine.loaded_at, 6) if engine.resident else None,
        "idle_s": round(now - engine.idle_since, 6) if idle else None,
        "keep_alive_s": engine.keep_alive_s,
        "leaves_in_s": _leaves_in(engine, now) if idle else None,
        "draining_for": engine.draining_for,
        "released": engine.released,
        "failures": engine.failures,
        "last_error": engine.last_error,
    }


def _leaves_in(engine: EngineRecord, now: float) -> float | None:
    if engine.keep_alive_s == NO_TIMEOUT or engine.pins or not engine.used_since_load:
        return None
    return max(0.0, engine.idle_since + engine.keep_alive_s - now)


def record_to_wire(record: DecisionRecord) -> dict[str, Any]:
    """A decision record as JSON-serialisable data."""
    return {
        "number": record.number,
        "at_s": record.at,
        "wanted": record.wanted,
        "reason": record.reason,
        "policy": record.policy,
        "requested_bytes": dict(record.requested),
        "free_bytes": dict(record.free),
        "candidates": [
            {"engine": c.engine_id, "loss": c.loss, "bytes": dict(c.bookings)}
            for c in record.candidates
        ],
        "victims": list(record.victims),
        "draining": list(record.draining),
    }
