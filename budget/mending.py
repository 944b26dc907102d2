"""After a fault inside the core: the event takes effect, and every table follows from the facts.

Facts are what cannot be found out anew: each engine's state, bytes and leases, the requests that
wait, who pins what, the plans, limits and models. Everything else (books, lists, claims, who drains,
who is to be looked at) follows from them, and claims are decided anew.
"""

from __future__ import annotations

from budget.actions import Deny
from budget.balance import imbalances
from budget.desk import Desk
from budget.engines import EngineRecord
from budget.errors import InternalError
from budget.residency import DORMANT, EVICTING, IDLE, LEASED, LOADING, RESIDENT, State, Trigger
from budget.waiting import Waiting


def failed(desk: Desk, where: str, error: Exception, now: float) -> None:
    """Tell of a fault in the middle of a decision and put right whatever is left half done."""
    desk.faults.note(where, error, put_right(desk, now))


def part_failed(desk: Desk, part: str, error: Exception, now: float) -> None:
    """As `failed`, of a part that nothing depends on."""
    desk.faults.bear(part, error, put_right(desk, now))


def put_right(desk: Desk, now: float) -> list[str]:
    """Mend what does not balance; returns what that was. Never raises."""
    found = imbalances(desk)
    if found:
        try:
            mend(desk, now)
        except Exception as error:
            desk.faults.note("putting the tables right", error)
    return found


def broke_down(request_error: Exception) -> InternalError:
    """What a request hears that cannot be served because the core fails at it."""
    what = f"{type(request_error).__name__}: {request_error}"
    return InternalError(
        f"The request could not be decided: {what}.",
        hint="This is a bug of keepwarm; the keeper's log has the traceback.",
    )


def drop(desk: Desk, request: Waiting, error: InternalError) -> None:
    """A waiting request ends, whatever else fails."""
    desk.queue.by_id.pop(request.request_id, None)
    desk.holders.ended(request.model, request.request_id)
    desk.actions.append(Deny(request.request_id, request.client_id, error.to_wire()))


# Tables from facts


def mend(desk: Desk, now: float) -> None:
    """Make every table anew from the facts; what was claimed is decided anew."""
    desk.claims.clear()
    for engine in list(desk.residents):
        _settle_engine(desk, engine, now)
    _settle_requests(desk)
    desk.queue.rebuild()
    for engine in desk.residents:
        waits = desk.queue.of(engine.engine_id)
        engine.demand = len(waits) if waits else 0
    _settle_pins(desk)
    desk.residents.rebuild()
    desk.leases.clear()
    desk.leases.update({r: e for e in desk.residents for r in e.leases})
    desk.interruptible &= desk.leases.keys()
    desk.asked &= desk.leases.keys()
    _settle_tables(desk)
    _settle_timers(desk)
    for engine in list(desk.residents):
        if engine.retired and engine.state in DORMANT:
            desk.forget(engine)
    desk.fitting.place_pins()
    for engine in desk.residents:
        if engine.state is LOADING and engine.load_told != engine.generation:
            desk.tell_load(engine, "requested")
        if engine.state is EVICTING and engine.unload_told != engine.generation:
            abandoned = any(
                trigger is Trigger.ABANDON for _, _, trigger, _ in list(engine.story)[-1:]
            )
            desk.tell_unload(engine, "evicted", abandon=abandoned)


def _settle_engine(desk: Desk, engine: EngineRecord, now: float) -> None:
    """One engine's own record agrees with itself."""
    for request_id in [r for r in engine.leases if r in desk.queue.by_id]:
        # Its grant was under way and nothing has told of it: it waits.
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


def _settle_requests(desk: Desk) -> None:
    """Every waiting request waits for the engine of its model, or ends."""
    for request in list(desk.queue.by_id.values()):
        entry = desk.models.get(request.model)
        if entry is None or entry.engine_id not in desk.residents:
            desk.queue.by_id.pop(request.request_id, None)
            error = desk.why_unknown(request.model).to_wire()
            desk.actions.append(Deny(request.request_id, request.client_id, error))
        else:
            request.engine_id = entry.engine_id


def _settle_pins(desk: Desk) -> None:
    for engine in desk.residents:
        engine.pins.clear()
    for model in desk.holders:
        for request_id in desk.holders.requests_of(model) - desk.queue.by_id.keys():
            desk.holders.ended(model, request_id)
    for model in desk.holders:
        entry = desk.models.get(model)
        if entry is None or entry.engine_id not in desk.residents or not desk.holders.get(model):
            desk.holders.unpin(model)
        else:
            desk.residents[entry.engine_id].pins.add(model)


def _settle_tables(desk: Desk) -> None:
    """Whatever may have something to do is looked at."""
    desk.restless.clear()
    desk.restless.update({e.engine_id: e for e in desk.residents})
    desk.unsettled.update(ledger.device for ledger in desk.residents.books)
    for engine_id, engine in list(desk.prefetched.items()):
        if engine.state not in (LOADING, IDLE) or desk.residents.get(engine_id) is not engine:
            del desk.prefetched[engine_id]
    desk.plans.follow({name: entry.engine_id for name, entry in desk.models.items()})


def _settle_timers(desk: Desk) -> None:
    desk.timers.clear()
    for request in desk.queue.by_id.values():
        desk.timers.wake_at(request.arrived_at + desk.settings.max_wait_s)
        if request.deadline is not None:
            desk.timers.wake_at(request.deadline)
    for engine in desk.residents:
        if engine.state is State.FAILED:
            desk.timers.wake_at(engine.retry_at)
        elif engine.immune_until:
            desk.timers.wake_at(engine.immune_until)
