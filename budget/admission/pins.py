"""Pins and hints: which models callers want to stay, and which may leave."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from budget.admission.refusals import (
    is_awaited,
    is_pinned,
    never_fits,
    pins_do_not_fit,
    too_late,
)
from budget.admission.state import CoreState
from budget.books.engines import EngineRecord
from budget.books.pin_holders import Holders
from budget.books.queue import Waiting
from budget.books.states import DORMANT, State
from budget.errors import ConfigError, DeadlineExceeded, NeverFits
from budget.events import HintGiven


def pin_for(state: CoreState, engine: EngineRecord, request: Waiting) -> None:
    """Pin an engine because a caller asked for it; its bytes are protected from now on."""
    state.holders.ask(request.model, request.request_id, request.client_id, request.owner)
    state.pin(engine, request.model)
    state.fitting.place_pins()


def pin_aside(state: CoreState, request: Waiting, now: float) -> None:
    """A pin that pins of other clients kept out is made as soon as it fits, or refused if it never will."""
    if request.request_id not in state.queue.aside:
        return
    engine = state.residents[request.engine_id]
    if state.fitting.pinnable(engine):
        state.queue.enlist(request)
        engine.demand += 1
        pin_for(state, engine, request)
        if state.grantable(engine, request, now):
            state.grant(engine, request, now)
    else:
        keep_out(state, engine, request, now)


def keep_out(state: CoreState, engine: EngineRecord, request: Waiting, now: float) -> None:
    """End a request that pins keep out for now if they are meant to last."""
    if not state.fitting.eventually(engine, {request.client_id}):
        state.end(request, no_place(state, request), now)


def is_kept_out(state: CoreState, engine: EngineRecord, request: Waiting) -> bool:
    """Whether nothing but pins that end with other clients keeps a request from what it asks for."""
    fitting = state.fitting
    if request.want == "pin":
        fits = fitting.pinnable(engine)
    else:
        fits = engine.resident or bool(fitting.feasible(engine))
    return not fits and fitting.eventually(engine, {request.client_id})


def no_place(state: CoreState, request: Waiting) -> NeverFits:
    """The error of a request for which limits and pins that last leave no place."""
    engine = state.residents[request.engine_id]
    shortfall = state.fitting.shortfall(engine, client_id=request.client_id)
    there = state.fitting.pinned_on(shortfall[0], engine)
    learned = any(option.learned for option in engine.spec.options)
    return never_fits(request.model, shortfall, pins_of(state, there), learned=learned)


def lateness(state: CoreState, request: Waiting, now: float) -> DeadlineExceeded:
    """The error of a request whose deadline has passed: it names the pins that kept it out, if any did."""
    engine = state.residents[request.engine_id]
    kept_out = bool(engine.spec.options) and is_kept_out(state, engine, request)
    models = state.fitting.in_the_way(engine, request.client_id) if kept_out else ()
    return too_late(request.model, now - request.arrived_at, pins_of(state, models))


def pins_of(state: CoreState, models: Iterable[str]) -> list[dict[str, Any]]:
    """What keeps these models pinned, JSON-serialisable.

    `clients`: whose pins end with them; `waiting`: those whose pin counts and whose load is awaited;
    `programs`: by client, the process that it is a connection of.
    """
    found = []
    for model in models:
        holders = state.holders.get(model) or Holders()
        found.append(
            {
                "model": model,
                "configured": holders.configured,
                "persistent": holders.persistent,
                "clients": sorted(holders.clients),
                "waiting": sorted(holders.waiting),
                "programs": holders.programs,
            }
        )
    return found


def check_hint(state: CoreState, event: HintGiven) -> None:
    """Whether a hint can be followed.

    Raises:
        UnknownModel: the model is not configured.
        AdmissionDenied: it is pinned and not to be unpinned, or requests wait for its load.
    """
    entry = state.models.get(event.model)
    if entry is None:
        raise state.why_unknown(event.model)
    engine = state.residents[entry.engine_id]
    if event.kind != "unpin" and engine.pins:
        raise is_pinned(event.model, engine.pins)
    if event.kind == "unload" and engine.state is State.LOADING and engine.demand:
        raise is_awaited(event.model, engine.demand)


def take_hint(state: CoreState, event: HintGiven, now: float) -> None:
    """Release, unload or unpin a model."""
    engine = state.residents[state.models[event.model].engine_id]
    if event.kind == "unload":
        _unload(state, engine, now)
    elif event.kind == "unpin":
        state.holders.unpin(event.model)
        state.unpin(engine, event.model)
    elif engine.state not in DORMANT:
        engine.released = True


def _unload(state: CoreState, engine: EngineRecord, now: float) -> None:
    if engine.state is State.LOADING:
        state.evict(engine, now, "asked to leave")
    elif engine.resident:
        engine.leave_when_idle = True
        state.restless[engine.engine_id] = engine


def check_pins(state: CoreState) -> None:
    """Choose where the pinned engines go.

    Raises:
        ConfigError: they do not fit together, or one has no placement.
    """
    for engine in state.residents.pinned:
        if not engine.spec.options:
            names = ", ".join(sorted(engine.pins))
            raise ConfigError(f"{names} is pinned and has no placement.", hint="Unpin it.")
    stuck = state.fitting.place_pins()
    if stuck is not None:
        raise pins_do_not_fit(stuck.pins, state.fitting.shortfall(stuck))
