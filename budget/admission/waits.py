"""What has to happen before a request is served, in words: for `keepwarm ps`, traces and errors."""

from __future__ import annotations

from collections.abc import Iterable

from budget.admission.pins import is_kept_out
from budget.admission.state import CoreState
from budget.books.engines import Bookings, EngineRecord
from budget.books.queue import Waiting
from budget.books.states import State


def waits_for(state: CoreState, request: Waiting) -> str:
    """What a request waits for now. Reads, and changes nothing.

    A slot is named with its model; bytes with their device and with the models that hold them.
    """
    engine = state.residents[request.engine_id]
    if is_kept_out(state, engine, request):
        models = ", ".join(state.fitting.in_the_way(engine, request.client_id))
        return f"other clients' pins to end: {models}"
    claim = state.claims.get(engine.engine_id)
    if claim is not None:
        draining = [state.residents[one] for one in sorted(claim.draining)]
        if draining:
            return _bytes_held(state, engine, claim.option.bookings, draining, "in use")
        return _bytes_held(state, engine, claim.option.bookings, _leaving(state), "leaving")
    if engine.state is State.LOADING:
        return "its load"
    if engine.state is State.EVICTING:
        return "the end of its process"
    if engine.draining_for is not None:
        return f"its next load: it drains for {_named(state, engine.draining_for)}"
    if engine.resident:
        return "its next load" if engine.leave_when_idle else f"a slot of {request.model}"
    holding = (one for one in state.residents if one.resident or one.state is State.LOADING)
    return _bytes_held(state, engine, engine.option.bookings, holding, "")


def _leaving(state: CoreState) -> Iterable[EngineRecord]:
    return (engine for engine in state.residents if engine.state is State.EVICTING)


def _bytes_held(
    state: CoreState,
    engine: EngineRecord,
    needed: Bookings,
    holders: Iterable[EngineRecord],
    how: str,
) -> str:
    """The bytes that an engine lacks, by the devices on which these hold some."""
    held: dict[str, list[str]] = {}
    wanted = {device for device, amount in needed if amount}
    for holder in holders:
        for device, amount in holder.bookings:
            if holder is not engine and amount and device in wanted:
                held.setdefault(device, []).append(_named(state, holder.engine_id))
    said = [f"bytes of {device} held by {', '.join(models)}" for device, models in held.items()]
    if not said:
        return "bytes"
    return " and ".join(said) + (f" ({how})" if how else "")


def _named(state: CoreState, engine_id: str) -> str:
    """The models of an engine, in words."""
    return "+".join(state.models_of(engine_id)) or engine_id
