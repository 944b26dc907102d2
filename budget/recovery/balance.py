"""Whether the core's tables agree. Each disagreement is a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from budget.admission.state import CoreState
from budget.books.states import DORMANT, EVICTING, IDLE, LOADING


def imbalances(state: CoreState) -> list[str]:
    """Disagreements of books, engines, leases, pins, queue, claims and declared uses; empty is sound.

    Never raises: a table that cannot even be read is a disagreement, too.
    """
    found: list[str] = []
    for check in CHECKS:
        try:
            found.extend(check(state))
        except Exception as error:
            found.append(f"{check.__name__.strip('_')}: {type(error).__name__}: {error}")
    return found


def _books(state: CoreState) -> Iterator[str]:
    yield from state.residents.books.imbalances()


def _residents(state: CoreState) -> Iterator[str]:
    yield from state.residents.imbalances()


def _leases(state: CoreState) -> Iterator[str]:
    leased = {request_id: e for e in state.residents for request_id in e.leases}
    if leased != state.leases:
        yield f"leases {state.leases} against engines' {leased}"
    for request_id in leased.keys() & state.queue.by_id.keys():
        yield f"{request_id} is granted and waits"
    for name in ("interruptible", "asked"):
        if stray := getattr(state, name) - leased.keys():
            yield f"leases {sorted(stray)} are {name} and over"


def _pins(state: CoreState) -> Iterator[str]:
    pinned: dict[str, set[str]] = {}
    for model in state.holders:
        entry = state.models.get(model)
        if not state.holders.get(model):
            yield f"{model} is pinned by nothing"
        if entry is None:
            yield f"{model} is pinned and not configured"
        else:
            pinned.setdefault(entry.engine_id, set()).add(model)
    for engine in state.residents:
        if engine.pins != pinned.get(engine.engine_id, set()):
            yield f"{engine!r} has pins {sorted(engine.pins)} against {pinned}"
    waiting = state.queue.by_id.keys()
    for model in state.holders:
        holders = state.holders.get(model)
        if holders is not None and (stray := holders.requests.keys() - waiting):
            yield f"{model} is pinned by requests {sorted(stray)} that do not wait"


def _queue(state: CoreState) -> Iterator[str]:
    listed = 0
    for engine in state.residents:
        waits = list(state.queue.of(engine.engine_id) or ())
        listed += len(waits)
        if engine.demand != len(waits):
            yield f"{engine!r} has demand {engine.demand} against {len(waits)} waiting"
        for request in waits:
            if request.engine_id != engine.engine_id:
                yield f"{request.request_id} waits for {request.engine_id} with {engine!r}"
            if state.queue.get(request.request_id) is not request:
                yield f"{request.request_id} waits for {engine!r} and is not known"
    aside = state.queue.aside
    if listed + len(aside) != len(state.queue) or not aside.keys() <= state.queue.by_id.keys():
        yield f"{len(state.queue)} requests wait, {listed} for an engine and {sorted(aside)} for pins"


def _claims(state: CoreState) -> Iterator[str]:
    residents, claims = state.residents, state.claims
    for engine in residents:
        if engine.draining_for is not None:
            claim = claims.get(engine.draining_for)
            if claim is None or engine.engine_id not in claim.draining:
                yield f"{engine!r} drains for nothing: {claim}"
    for name, claim in claims.by_engine.items():
        if residents.get(name) is not claim.engine:
            yield f"{claim.engine!r} is claimed for and not known"
        if claim.engine.state not in DORMANT and claim.engine.state is not EVICTING:
            yield f"{claim.engine!r} is claimed for although it is there"
        for victim in claim.draining:
            engine_ = residents.get(victim)
            if engine_ is None or engine_.draining_for != name:
                yield f"{victim} does not drain for {name}: {engine_!r}"


def _told(state: CoreState) -> Iterator[str]:
    """Loads and evictions under way that no action has asked for."""
    for engine in state.residents:
        if engine.state is LOADING and engine.load_told != engine.generation:
            yield f"{engine!r} loads and no action says so"
        if engine.state is EVICTING and engine.unload_told != engine.generation:
            yield f"{engine!r} leaves and no action says so"


def _tables(state: CoreState) -> Iterator[str]:
    """Entries of tables by engine for an engine that is gone."""
    residents = state.residents
    for engine_id, engine in (*state.restless.items(), *state.prefetched.items()):
        if residents.get(engine_id) is not engine:
            yield f"{engine!r} is restless or prefetched and not known"
    for engine_id, engine in state.prefetched.items():
        if engine.state not in (LOADING, IDLE):
            yield f"{engine_id} was loaded ahead: {engine!r}"
    for entry in state.models.values():
        if entry.engine_id not in residents:
            yield f"{entry.name} is of {entry.engine_id}, which is not known"
    for name, _, order in state.declared_uses.declared():
        if stray := {engine_id for engine_id in order if engine_id not in residents}:
            yield f"declared uses {name} name {sorted(stray)}, which are not known"


CHECKS: tuple[Callable[[CoreState], Iterator[str]], ...] = (
    _books,
    _residents,
    _leases,
    _pins,
    _queue,
    _claims,
    _told,
    _tables,
)
