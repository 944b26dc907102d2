"""The core's state, and the few steps that every decision is made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from budget.actions import Action, DecisionRecord, Deny, Grant, Record, Revoke, StartLoad, Unload
from budget.admission.admission import Admission, Choice
from budget.admission.fits import Fitting
from budget.admission.refusals import unknown_model
from budget.admission.timers import Timers
from budget.books.claims import Claim, Claims
from budget.books.declared_uses import DeclaredUses
from budget.books.engines import NO_TIMEOUT, Bookings, EngineRecord, EngineSpec, Lease, ModelSpec
from budget.books.pin_holders import PinHolders
from budget.books.queue import Queue, Rank, Waiting
from budget.books.residents import Residents
from budget.errors import InternalError, KeepwarmError, LoadError, error_from_wire
from budget.events import RequestArrived
from budget.eviction.policies.eviction_policy import EvictionPolicy
from budget.eviction.policies.guarded import Guarded
from budget.recovery.faults import Faults
from budget.settings import CoreSettings

RECORDS_KEPT = 64
PIN_RANK: Rank = (0, -1, 0)
"""Pinned engines come before every request."""
PREFETCH = "prefetch"
"""The reason of a load for a declared use that no request has asked for yet."""


@dataclass(slots=True)
class PrefetchCounts:
    """What looking ahead did: loads started and used, bytes staged, bytes loaded or read in vain."""

    loads: int = 0
    used: int = 0
    staged_bytes: int = 0
    wasted_bytes: int = 0


@dataclass(slots=True)
class Staging:
    """The file that is being read into the page cache. `stopped`: it was told to stop."""

    engine_id: str
    stopped: bool = False


class CoreState:
    """Engines, books, queue, leases and claims; `actions` collects what is to be done."""

    def __init__(
        self,
        limits: Mapping[str, int],
        engines: Iterable[EngineSpec],
        policy: EvictionPolicy,
        settings: CoreSettings,
    ) -> None:
        self.settings = settings
        self.residents = Residents(limits, engines)
        self.declared_uses = DeclaredUses()
        self.faults = Faults()
        self.policy = Guarded(policy, self.faults)
        self.policy.attach(self.residents, self.declared_uses)
        self.holders = PinHolders()
        self.fitting = Fitting(self.residents, self.holders)
        self.claims = Claims(self.residents)
        self.admission = Admission(self.residents, self.fitting, self.claims, self.policy)
        self.queue = Queue()
        self.timers = Timers()
        self.models: dict[str, ModelSpec] = {}
        self.errors: dict[str, dict[str, Any]] = {}
        """Why models that are configured cannot be run now, as errors on the wire."""
        self.leases: dict[str, EngineRecord] = {}
        self.interruptible: set[str] = set()
        """Leases that may be asked to yield."""
        self.asked: set[str] = set()
        """Leases that were asked to yield."""
        self.revoked: dict[str, Revoke] = {}
        """Leases that ended otherwise than by their clients, and that these have not given back yet."""
        self.records: deque[DecisionRecord] = deque(maxlen=RECORDS_KEPT)
        self.actions: list[Action] = []
        self.restless: dict[str, EngineRecord] = {}
        """Engines that may have a reason to leave once they are idle."""
        self.started = False
        """Whether actions are carried out: pinned engines load from then on."""
        self.staging: Staging | None = None
        self.prefetch = PrefetchCounts()
        self.prefetched: dict[str, EngineRecord] = {}
        """Engines that were loaded ahead, or are loading, and that no request has used yet."""
        self.low: set[str] = set()
        """Devices with less free than their reserve."""
        self.unsettled: set[str] = set()
        """Devices that may be over their ceiling, or were when last looked at."""

    # Requests

    def enqueue(self, request: Waiting, *, aside: bool = False) -> None:
        """Let a request wait; the core wakes for its age and its deadline. `aside`: see `Queue.aside`."""
        engine = self.residents[request.engine_id]
        self.queue.add(request, aside=aside)
        engine.demand += not aside
        self.timers.wake_at(request.arrived_at + self.settings.max_wait_s)
        if request.deadline is not None:
            self.timers.wake_at(request.deadline)

    def dequeue(self, request: Waiting) -> None:
        """Take a request out of the queue."""
        engine = self.residents[request.engine_id]
        engine.demand -= request.request_id not in self.queue.aside
        self.queue.remove(request)

    def move(self, request: Waiting, engine: EngineRecord) -> None:
        """Let a request wait for another engine, which runs its model now."""
        listed = request.request_id not in self.queue.aside
        self.residents[request.engine_id].demand -= listed
        engine.demand += listed
        self.queue.move(request, engine.engine_id)
        request.seen_generation = engine.generation if engine.resident else -1

    def end(self, request: Waiting, error: KeepwarmError, now: float) -> None:
        """End a waiting request without its outcome; the pin it brought goes with it."""
        engine = self.residents[request.engine_id]
        waits = self.queue.of(engine.engine_id)
        was_head = waits is not None and waits.head(now, self.settings.max_wait_s) is request
        told = error.to_wire()
        if request.waited_for and isinstance(error, LoadError):
            told["facts"] = {"waited_for": request.waited_for, **told["facts"]}
        denial = Deny(request.request_id, request.client_id, told)
        self.dequeue(request)
        self.actions.append(denial)
        if self.holders.ended(request.model, request.request_id):
            self.residents.unpin(engine, request.model)
        claim = self.claims.get(engine.engine_id)
        if claim and ((was_head and claim.draining) or not (engine.demand or engine.pins)):
            # Engines drain for the first in line; whether they do for the next is decided anew.
            self.claims.drop(engine.engine_id)
        if not engine.demand:
            self.restless[engine.engine_id] = engine

    def why_unknown(self, model: str) -> KeepwarmError:
        """The error for a model that cannot be run or is not configured."""
        error = self.errors.get(model)
        return error_from_wire(error) if error else unknown_model(model, self.models)

    def models_of(self, engine_id: str) -> list[str]:
        """The names of the models that an engine runs."""
        return sorted(name for name, one in self.models.items() if one.engine_id == engine_id)

    def head_rank(self, engine_id: str, now: float) -> Rank | None:
        """The rank of the first request that waits for an engine, or None."""
        waits = self.queue.of(engine_id)
        if waits is None:
            return None
        return waits.head(now, self.settings.max_wait_s).rank(now, self.settings.max_wait_s)

    def claim_rank(self, claim: Claim, now: float) -> Rank:
        """The rank of a claim: its first waiting request's; a pin's is before every request's."""
        if claim.engine.pins:
            return PIN_RANK
        return self.head_rank(claim.engine.engine_id, now) or claim.rank

    def grantable(self, engine: EngineRecord, request: Waiting, now: float) -> bool:
        """Whether a request may be granted now: resident, a free slot, and no request before it."""
        if not engine.resident or engine.retired:
            return False
        if request.want == "pin":
            return True
        if engine.leave_when_idle:
            return False
        if request.want == "lease" and engine.free_slot() is None:
            return False
        if not engine.demand and engine.draining_for is None:
            return True
        rank = request.rank(now, self.settings.max_wait_s)
        if engine.draining_for is not None:
            claim = self.claims[engine.draining_for]
            if self.claim_rank(claim, now) < rank:
                return False
        first = self.head_rank(engine.engine_id, now) if request.want == "lease" else None
        return first is None or rank <= first

    def grant(self, engine: EngineRecord, request: Waiting, now: float) -> None:
        """Give a request its outcome, whether it waits or has just come; a lease takes the lowest slot."""
        slot: int | None = None
        if request.want == "lease":
            slot = engine.free_slot()
            if slot is None:
                raise InternalError(f"{engine!r} has no free slot for {request.request_id}")
            waited_s = now - request.arrived_at if request.interrupted else 0.0
            lease = Lease(
                request.request_id,
                request.client_id,
                request.model,
                slot,
                request.priority,
                now,
                request.number,
                request.interrupted_s + waited_s,
            )
            self._lease(engine, lease, now, preemptible=request.preemptible)
        elif request.want == "pin":
            self.holders.granted(request.model, request.request_id, persist=request.persist)
        self._used(engine)
        grant = Grant(
            request.request_id,
            request.client_id,
            request.model,
            engine.engine_id,
            engine.generation,
            slot,
            request.seen_generation != engine.generation,
            request.arrived_at,
            now,
            request.waited_for,
        )
        # Last of all, so that a request either waits or has been told of its outcome.
        if request.request_id in self.queue:
            self.dequeue(request)
        self.actions.append(grant)

    def grant_at_once(
        self, engine: EngineRecord, event: RequestArrived, priority: int, number: int, now: float
    ) -> None:
        """Lease a slot of an open engine to a request that has just arrived."""
        slot = engine.free_slot()
        if slot is None:
            raise InternalError(f"{engine!r} has no free slot for {event.request_id}")
        request_id, client_id, model = event.request_id, event.client_id, event.model
        lease = Lease(request_id, client_id, model, slot, priority, now, number)
        self._lease(engine, lease, now, preemptible=event.preemptible)
        name, generation = engine.engine_id, engine.generation
        cold = False
        self._used(engine)
        grant = Grant(request_id, client_id, model, name, generation, slot, cold, now, now)
        self.actions.append(grant)

    def _lease(self, engine: EngineRecord, lease: Lease, now: float, *, preemptible: bool) -> None:
        self.residents.lease(engine, lease, now)
        self.leases[lease.request_id] = engine
        patient = lease.interrupted_s < self.settings.max_wait_s
        if preemptible and patient and self.settings.preempt:
            self.interruptible.add(lease.request_id)

    def _used(self, engine: EngineRecord) -> None:
        """Note that a request is served, so that a load ahead was not in vain."""
        if self.prefetched.pop(engine.engine_id, None) is not None:
            self.prefetch.used += 1

    def give_back(self, engine: EngineRecord, request_id: str, now: float) -> None:
        """Take a lease back and free its slot."""
        del self.leases[request_id]
        self.interruptible.discard(request_id)
        self.asked.discard(request_id)
        self.residents.end_lease(engine, request_id, now)
        if not engine.leases and (
            engine.keep_alive_s != NO_TIMEOUT
            or engine.draining_for is not None
            or engine.leave_when_idle
            or engine.retired
        ):
            self.restless[engine.engine_id] = engine

    def revoke(self, engine: EngineRecord, request_id: str, error: Mapping[str, Any]) -> None:
        """End a lease otherwise than by its client, and send the client the error."""
        told = Revoke(request_id, engine.leases[request_id].client_id, error)
        self.revoked[request_id] = told
        self.actions.append(told)

    # Bytes

    def load(self, claim: Claim, now: float) -> None:
        """Book a claim's bytes, which are free, and start the load."""
        engine = claim.engine
        self.claims.drop(engine.engine_id)
        self.residents.book(engine, claim.option_index, now, claim.reason)
        self.policy.booked(engine, now)
        engine.immune_until = now + self.settings.max_wait_s if claim.forced else 0.0
        if claim.reason == PREFETCH:
            self.prefetch.loads += 1
            self.prefetched[engine.engine_id] = engine
        self.tell_load(engine, claim.reason)

    def evict(self, engine: EngineRecord, now: float, reason: str) -> None:
        """Evict an idle engine, or abandon a load that no request waits for."""
        self.claims.drained(engine)
        self.lost(engine)
        self.restless.pop(engine.engine_id, None)
        abandon = self.residents.leave(engine, now, reason)
        self.tell_unload(engine, reason, abandon=abandon)

    def tell_load(self, engine: EngineRecord, reason: str) -> None:
        """Have the load of an engine carried out whose bytes are booked."""
        self.actions.append(
            StartLoad(engine.engine_id, engine.generation, engine.option_index, reason)
        )
        engine.load_told = engine.generation

    def tell_unload(self, engine: EngineRecord, reason: str, *, abandon: bool) -> None:
        """Have the end of an engine carried out that is being evicted."""
        self.actions.append(Unload(engine.engine_id, engine.generation, reason, abandon))
        engine.unload_told = engine.generation

    def lost(self, engine: EngineRecord) -> None:
        """Note that an engine ends; if it was loaded ahead and never used, that was in vain."""
        if self.prefetched.pop(engine.engine_id, None) is not None:
            self.prefetch.wasted_bytes += sum(amount for _, amount in engine.bookings)

    def decide(
        self, wanted: str, requested: Bookings, choice: Choice, now: float, reason: str
    ) -> None:
        """Write the decision record of a choice and let its victims go."""
        record = self.admission.record(wanted, requested, choice, now, reason)
        self.records.append(record)
        self.actions.append(Record(record))
        for victim in choice.victims:
            self.evict(self.residents[victim], now, f"evicted for {wanted}")

    def pin(self, engine: EngineRecord, model: str) -> None:
        """Protect an engine; claims that counted on its bytes are dropped, and decided anew."""
        self.residents.pin(engine, model)
        engine.leave_when_idle = False
        if engine.draining_for is not None:
            self.claims.drop(engine.draining_for)

    def unpin(self, engine: EngineRecord, model: str) -> None:
        """End a model's pin; bytes that were promised to its engine for that alone are free."""
        self.residents.unpin(engine, model)
        if not engine.demand and not engine.pins:
            self.claims.drop(engine.engine_id)
        self.restless[engine.engine_id] = engine

    def forget(self, engine: EngineRecord) -> None:
        """Remove an engine from every table: it is no longer configured and holds nothing."""
        self.claims.drop(engine.engine_id)
        self.claims.spared.discard(engine.engine_id)
        self.restless.pop(engine.engine_id, None)
        self.prefetched.pop(engine.engine_id, None)
        self.fitting.forget(engine.engine_id)
        self.residents.drop(engine)
