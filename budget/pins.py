"""Pins and hints: what callers say should stay, and what may go."""

from __future__ import annotations

from budget.desk import Desk
from budget.engines import EngineRecord
from budget.errors import ConfigError
from budget.events import HintGiven
from budget.refusals import is_awaited, is_pinned, pins_do_not_fit
from budget.residency import DORMANT, State
from budget.waiting import Waiting


def pin_for(desk: Desk, engine: EngineRecord, request: Waiting) -> None:
    """Pin an engine because a caller asked for it; its bytes are protected from now on."""
    desk.holders.ask(request.model, request.request_id, request.client_id)
    desk.pin(engine, request.model)
    desk.fitting.place_pins()


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
