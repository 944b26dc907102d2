"""Preemption: which answer is interrupted for which request, and how an interrupted request waits.

A request of higher priority that waits for a slot, or for the bytes of an engine that drains for
it, has one lease of lower priority asked to yield. A request that yields waits again under its own
id, at its own priority, before its equals that came after it. Its waits since it first ran are
summed up: once they reach `max_wait_s` it is not asked again, so that being interrupted ends.
"""

from __future__ import annotations

from budget.actions import AskYield, Deny
from budget.admission.state import CoreState
from budget.books.engines import EngineRecord, Lease
from budget.books.queue import Waiting
from budget.events import LeaseYielded


class Preemption:
    """Asks for leases; never takes one."""

    def __init__(self, state: CoreState) -> None:
        self._state = state

    def ask(self, _now: float) -> None:
        """Ask every lease to yield that a request of higher priority waits for."""
        state = self._state
        if not state.interruptible:
            return
        state.interruptible &= state.leases.keys()
        for engine_id in state.queue.engines():
            engine = state.residents[engine_id]
            if engine.resident and engine.draining_for is None and not engine.leave_when_idle:
                self._ask_for_slots(engine)
        for claim in state.claims:
            if claim.draining:
                self._ask_for_bytes(claim.engine, claim.draining)

    def _ask_for_slots(self, engine: EngineRecord) -> None:
        """One lease for each request that waits before it, the lowest and latest first."""
        state = self._state
        waits = state.queue.of(engine.engine_id)
        if waits is None or engine.free_slot() is not None:
            return
        leases = engine.leases.values()
        asked = sum(lease.request_id in state.asked for lease in leases)
        willing = [lease for lease in leases if self._willing(lease)]
        willing.sort(key=lambda lease: (lease.priority, -lease.granted_at))
        for priority in waits.priorities("lease", engine.spec.slots)[asked:]:
            if not willing or willing[0].priority >= priority:
                return
            self._ask(willing.pop(0), engine.engine_id)

    def _ask_for_bytes(self, wanted: EngineRecord, draining: set[str]) -> None:
        """Every lease of an engine that drains, if all of them would yield: else nothing is gained."""
        state = self._state
        waits = state.queue.of(wanted.engine_id)
        highest = max(waits.priorities(None, 1), default=None) if waits else None
        if highest is None:
            return
        for engine_id in sorted(draining):
            leases = list(state.residents[engine_id].leases.values())
            new = [lease for lease in leases if lease.request_id not in state.asked]
            if all(self._willing(lease) and lease.priority < highest for lease in new):
                for lease in new:
                    self._ask(lease, wanted.engine_id)

    def _willing(self, lease: Lease) -> bool:
        state = self._state
        return lease.request_id in state.interruptible and lease.request_id not in state.asked

    def _ask(self, lease: Lease, wanted: str) -> None:
        self._state.asked.add(lease.request_id)
        self._state.actions.append(AskYield(lease.request_id, lease.client_id, wanted))


def take_yielded(state: CoreState, event: LeaseYielded, now: float) -> None:
    """A lease is given back by a request that wants to go on: it waits again.

    One that was told meanwhile that its lease is over ends with the reason.
    """
    engine = state.leases.get(event.request_id)
    if engine is None:
        told = state.revoked.pop(event.request_id)
        state.actions.append(Deny(event.request_id, event.client_id, told.error))
        return
    lease = engine.leases[event.request_id]
    engine.deaths = 0
    entry = state.models.get(lease.model)
    state.give_back(engine, event.request_id, now)
    if entry is None:
        error_wire = state.why_unknown(lease.model).to_wire()
        state.actions.append(Deny(event.request_id, event.client_id, error_wire))
        return
    state.enqueue(_again(lease, entry.engine_id, engine, now))


def _again(lease: Lease, engine_id: str, engine: EngineRecord, now: float) -> Waiting:
    """The request of a lease that was yielded: its number is its place among its equals."""
    return Waiting(
        lease.request_id,
        lease.client_id,
        lease.model,
        engine_id,
        "lease",
        lease.priority,
        None,
        now,
        lease.number,
        engine.generation if engine.engine_id == engine_id else -1,
        preemptible=True,
        interrupted_s=lease.interrupted_s,
        interrupted=True,
    )
