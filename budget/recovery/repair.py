"""After a fault inside the core: the event takes effect, and every table follows from the facts.

Facts are what cannot be found out anew: each engine's state, bytes and leases, the requests that
wait, the holders of each pin, declared uses, limits and models. Everything else (books, lists, which
engines drain, which are to be looked at) follows from them, and claims are decided anew.
"""

from __future__ import annotations

from budget.actions import Deny
from budget.admission.state import CoreState
from budget.books.engines import EngineRecord
from budget.books.queue import Waiting
from budget.books.states import DORMANT, EVICTING, IDLE, LEASED, LOADING, RESIDENT, State, Trigger
from budget.errors import InternalError
from budget.recovery.balance import imbalances


def failed(state: CoreState, where: str, error: Exception, now: float) -> None:
    """Note a fault in the middle of a decision, and put right whatever it left half done."""
    state.faults.note(where, error, put_right(state, now))


def part_failed(state: CoreState, part: str, error: Exception, now: float) -> None:
    """As `failed`, of a part that nothing depends on."""
    state.faults.bear(part, error, put_right(state, now))


def put_right(state: CoreState, now: float) -> list[str]:
    """Mend what does not balance; returns what that was. Never raises."""
    found = imbalances(state)
    if found:
        try:
            mend(state, now)
        except Exception as error:
            state.faults.note("putting the tables right", error)
    return found


def broke_down(request_error: Exception) -> InternalError:
    """The error of a request that cannot be served because the core fails at it."""
    what = f"{type(request_error).__name__}: {request_error}"
    return InternalError(
        f"The request could not be decided: {what}.",
        hint="This is a bug of keepwarm; the keeper's log has the traceback.",
    )


def drop(state: CoreState, request: Waiting, error: InternalError) -> None:
    """End a waiting request, whatever else fails."""
    state.queue.by_id.pop(request.request_id, None)
    state.holders.ended(request.model, request.request_id)
    state.actions.append(Deny(request.request_id, request.client_id, error.to_wire()))


# Tables from facts


def mend(state: CoreState, now: float) -> None:
    """Make every table anew from the facts; what was claimed is decided anew."""
    state.claims.clear()
    for engine in list(state.residents):
        _settle_engine(state, engine, now)
    _settle_requests(state)
    state.queue.rebuild()
    for engine in state.residents:
        waits = state.queue.of(engine.engine_id)
        engine.demand = len(waits) if waits else 0
    _settle_pins(state)
    state.residents.rebuild()
    state.leases.clear()
    state.leases.update({r: e for e in state.residents for r in e.leases})
    state.interruptible &= state.leases.keys()
    state.asked &= state.leases.keys()
    _settle_tables(state)
    _settle_timers(state)
    for engine in list(state.residents):
        if engine.retired and engine.state in DORMANT:
            state.forget(engine)
    state.fitting.place_pins()
    for engine in state.residents:
        if engine.state is LOADING and engine.load_told != engine.generation:
            state.tell_load(engine, "requested")
        if engine.state is EVICTING and engine.unload_told != engine.generation:
            abandoned = any(
                trigger is Trigger.ABANDON for _, _, trigger, _ in list(engine.past)[-1:]
            )
            state.tell_unload(engine, "evicted", abandon=abandoned)


def _settle_engine(state: CoreState, engine: EngineRecord, now: float) -> None:
    """Make one engine's record agree with itself."""
    for request_id in [r for r in engine.leases if r in state.queue.by_id]:
        # Its grant was under way and no action says so: the request waits.
        del engine.leases[request_id]
    if engine.state in RESIDENT:
        before = engine.state
        engine.state = LEASED if engine.leases else IDLE
        if before is LEASED and engine.state is IDLE:
            engine.idle_since = engine.last_used = now
    else:
        engine.leases.clear()
    if engine.state in DORMANT:
        engine.bookings = ()
    elif not engine.bookings:
        engine.bookings = engine.option.bookings


def _settle_requests(state: CoreState) -> None:
    """Let every waiting request wait for the engine of its model, or end it."""
    for request in list(state.queue.by_id.values()):
        entry = state.models.get(request.model)
        if entry is None or entry.engine_id not in state.residents:
            state.queue.by_id.pop(request.request_id, None)
            error = state.why_unknown(request.model).to_wire()
            state.actions.append(Deny(request.request_id, request.client_id, error))
        else:
            request.engine_id = entry.engine_id


def _settle_pins(state: CoreState) -> None:
    for engine in state.residents:
        engine.pins.clear()
    for model in state.holders:
        for request_id in state.holders.requests_of(model) - state.queue.by_id.keys():
            state.holders.ended(model, request_id)
    for model in state.holders:
        entry = state.models.get(model)
        if entry is None or entry.engine_id not in state.residents or not state.holders.get(model):
            state.holders.unpin(model)
        else:
            state.residents[entry.engine_id].pins.add(model)


def _settle_tables(state: CoreState) -> None:
    """Mark all that may have something to do, so that the next pass looks at it."""
    state.restless.clear()
    state.restless.update({e.engine_id: e for e in state.residents})
    state.unsettled.update(ledger.device for ledger in state.residents.books)
    for engine_id, engine in list(state.prefetched.items()):
        if engine.state not in (LOADING, IDLE) or state.residents.get(engine_id) is not engine:
            del state.prefetched[engine_id]
    state.declared_uses.follow({name: entry.engine_id for name, entry in state.models.items()})


def _settle_timers(state: CoreState) -> None:
    state.timers.clear()
    for request in state.queue.by_id.values():
        state.timers.wake_at(request.arrived_at + state.settings.max_wait_s)
        if request.deadline is not None:
            state.timers.wake_at(request.deadline)
    for engine in state.residents:
        if engine.state is State.FAILED:
            state.timers.wake_at(engine.retry_at)
        elif engine.immune_until:
            state.timers.wake_at(engine.immune_until)
