"""Pins and hints: what callers say should stay, and what may go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from budget.desk import Desk
from budget.engines import EngineRecord
from budget.errors import ConfigError, DeadlineExceeded, NeverFits
from budget.events import HintGiven
from budget.pin_holders import Holders
from budget.refusals import (
    is_awaited,
    is_pinned,
    never_fits,
    pins_do_not_fit,
    too_late,
)
from budget.residency import DORMANT, State
from budget.waiting import Waiting


def pin_for(desk: Desk, engine: EngineRecord, request: Waiting) -> None:
    """Pin an engine because a caller asked for it; its bytes are protected from now on."""
    desk.holders.ask(request.model, request.request_id, request.client_id, request.owner)
    desk.pin(engine, request.model)
    desk.fitting.place_pins()


def pin_aside(desk: Desk, request: Waiting, now: float) -> None:
    """A pin that pins of other clients kept out is made as soon as it fits, or refused if it never will."""
    if request.request_id not in desk.queue.aside:
        return
    engine = desk.residents[request.engine_id]
    if desk.fitting.pinnable(engine):
        desk.queue.enlist(request)
        engine.demand += 1
        pin_for(desk, engine, request)
        if desk.grantable(engine, request, now):
            desk.grant(engine, request, now)
    else:
        keep_out(desk, engine, request, now)


def keep_out(desk: Desk, engine: EngineRecord, request: Waiting, now: float) -> None:
    """End a request that pins keep out for now if they are meant to last."""
    if not desk.fitting.eventually(engine, {request.client_id}):
        desk.end(request, no_place(desk, request), now)


def is_kept_out(desk: Desk, engine: EngineRecord, request: Waiting) -> bool:
    """Whether nothing but pins that end with other clients keeps a request from what it asks for."""
    fitting = desk.fitting
    if request.want == "pin":
        fits = fitting.pinnable(engine)
    else:
        fits = engine.resident or bool(fitting.feasible(engine))
    return not fits and fitting.eventually(engine, {request.client_id})


def no_place(desk: Desk, request: Waiting) -> NeverFits:
    """Limits and pins that last leave no place for what a request asks for."""
    engine = desk.residents[request.engine_id]
    shortfall = desk.fitting.shortfall(engine, client_id=request.client_id)
    there = desk.fitting.pinned_on(shortfall[0], engine)
    return never_fits(request.model, shortfall, pins_of(desk, there))


def lateness(desk: Desk, request: Waiting, now: float) -> DeadlineExceeded:
    """What a request hears whose deadline has passed: whose pins kept it out, if any did."""
    engine = desk.residents[request.engine_id]
    kept_out = bool(engine.spec.options) and is_kept_out(desk, engine, request)
    models = desk.fitting.in_the_way(engine, request.client_id) if kept_out else ()
    return too_late(request.model, now - request.arrived_at, pins_of(desk, models))


def pins_of(desk: Desk, models: Iterable[str]) -> list[dict[str, Any]]:
    """What keeps these models pinned, JSON-serialisable.

    `clients`: whose pins end with them; `waiting`: those whose pin counts and whose load is awaited.
    """
    found = []
    for model in models:
        holders = desk.holders.get(model) or Holders()
        found.append(
            {
                "model": model,
                "configured": holders.configured,
                "persistent": holders.persistent,
                "clients": sorted(holders.clients),
                "waiting": sorted(holders.waiting),
            }
        )
    return found


def check_hint(desk: Desk, event: HintGiven) -> None:
    """Whether a hint can be followed.

    Raises:
        UnknownModel: the model is not configured.
        AdmissionDenied: it is pinned, or requests wait for its load.
    """
    entry = desk.models.get(event.model)
    if entry is None:
        raise desk.why_unknown(event.model)
    engine = desk.residents[entry.engine_id]
    if event.kind == "unload" and engine.pins:
        raise is_pinned(event.model, engine.pins)
    if event.kind == "unload" and engine.state is State.LOADING and engine.demand:
        raise is_awaited(event.model, engine.demand)


def take_hint(desk: Desk, event: HintGiven, now: float) -> None:
    """Release, unload or unpin a model."""
    engine = desk.residents[desk.models[event.model].engine_id]
    if event.kind == "unload":
        _unload(desk, engine, now)
    elif event.kind == "unpin":
        desk.holders.unpin(event.model)
        desk.unpin(engine, event.model)
    elif engine.state not in DORMANT:
        engine.released = True


def _unload(desk: Desk, engine: EngineRecord, now: float) -> None:
    if engine.state is State.LOADING:
        desk.evict(engine, now, "asked to leave")
    elif engine.resident:
        engine.leave_when_idle = True
        desk.restless[engine.engine_id] = engine


def check_pins(desk: Desk) -> None:
    """Choose where the pinned engines go.

    Raises:
        ConfigError: they do not fit together, or one has no placement.
    """
    for engine in desk.residents.pinned:
        if not engine.spec.options:
            names = ", ".join(sorted(engine.pins))
            raise ConfigError(f"{names} is pinned and has no placement.", hint="Unpin it.")
    stuck = desk.fitting.place_pins()
    if stuck is not None:
        raise pins_do_not_fit(stuck.pins, desk.fitting.shortfall(stuck))
