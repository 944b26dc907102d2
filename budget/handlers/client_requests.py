"""What clients ask for and give back: requests and leases."""

from __future__ import annotations

from typing import Any

from budget import events as ev
from budget.actions import Deny
from budget.admission.pins import lateness, no_place, pin_for
from budget.admission.preemption import take_yielded
from budget.admission.refusals import foreign_lease, queue_full, withdrawn
from budget.admission.scheduler import Scheduler
from budget.admission.state import CoreState
from budget.books.engines import EngineRecord, ModelSpec
from budget.books.queue import Waiting
from budget.errors import InternalError, KeepwarmError, LoadFailed
from budget.handlers.backoff import not_reached, refused_for_s
from budget.handlers.rule import EventRule
from budget.recovery import soundness

USES = "taking up declared uses"


class Requests:
    """Handles the events that come from clients."""

    def __init__(self, state: CoreState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler
        self._numbers = 0
        self.rules: dict[type[Any], EventRule] = {
            ev.RequestArrived: EventRule(self._admit_request, self._arrived),
            ev.RequestCancelled: EventRule(self._admit_cancel, self._cancelled, certain=True),
            ev.ClientGone: EventRule(self._admit_client, self._client_gone, certain=True),
            ev.LeaseEnded: EventRule(self._admit_end, self._lease_ended, certain=True),
            ev.LeaseTaken: EventRule(self._admit_taken, self._lease_taken, certain=True),
            ev.LeaseYielded: EventRule(self._admit_end, self._lease_yielded, certain=True),
        }

    # Arrivals

    def _admit_request(self, event: ev.RequestArrived) -> None:
        soundness.request(event)
        state = self._state
        if event.request_id in state.queue.by_id or event.request_id in state.leases:
            raise InternalError(f"request {event.request_id!r} arrived twice")

    def _arrived(self, event: ev.RequestArrived, now: float) -> bool:
        state = self._state
        entry = state.models.get(event.model)
        if entry is None:
            return self._deny(event, state.why_unknown(event.model))
        engine = state.residents[entry.engine_id]
        if engine.open and event.want == "lease":
            return self._grant_at_once(event, entry, engine, now)
        request = self._request(event, entry, engine, now)
        aside = request.want == "pin" and not state.fitting.pinnable(engine)
        at_once = not aside and state.grantable(engine, request, now)
        error = self._impossible(engine, request, now)
        if error is None and not at_once:
            error = self._cannot_wait(request, now)
        if error is not None:
            return self._deny(event, error)
        declared = self._use(event, engine, now)
        if request.want == "pin" and not aside:
            pin_for(state, engine, request)
        if at_once:
            state.grant(engine, request, now)
        else:
            state.enqueue(request, aside=aside)
        return request.want == "pin" or not at_once or declared

    def _grant_at_once(
        self, event: ev.RequestArrived, entry: ModelSpec, engine: EngineRecord, now: float
    ) -> bool:
        """Serve a request in the usual case: its engine is open. The caller has checked that."""
        self._numbers += 1
        declared = self._use(event, engine, now)
        priority = entry.priority if event.priority is None else event.priority
        self._state.grant_at_once(engine, event, priority, self._numbers, now)
        return declared

    def _use(self, event: ev.RequestArrived, engine: EngineRecord, now: float) -> bool:
        """Note a use in declared uses and policy; returns whether any uses are declared."""
        state = self._state
        declared = bool(state.declared_uses)
        try:
            state.declared_uses.used(event.plan or event.client_id, engine.engine_id)
        except Exception as error:
            # No request depends on them; declared uses that are half used up are dropped.
            state.declared_uses.drop(event.plan or event.client_id)
            state.faults.note(USES, error)
        state.policy.used(engine.engine_id, now)
        return declared

    def _request(
        self, event: ev.RequestArrived, entry: ModelSpec, engine: EngineRecord, now: float
    ) -> Waiting:
        self._numbers += 1
        return Waiting(
            event.request_id,
            event.client_id,
            event.model,
            entry.engine_id,
            event.want,
            entry.priority if event.priority is None else event.priority,
            event.deadline,
            now,
            self._numbers,
            engine.generation if engine.resident else -1,
            preemptible=event.preemptible,
            persist=event.persist,
            owner=event.owner,
        )

    def _impossible(
        self, engine: EngineRecord, request: Waiting, now: float
    ) -> KeepwarmError | None:
        """Why waiting would be in vain, or None. Asks and changes nothing."""
        fitting = self._state.fitting
        if not engine.spec.options:
            return LoadFailed(f"{request.model} has no placement.", hint="See `keepwarm plan`.")
        pins = request.want == "pin"
        fits = fitting.pinnable(engine) if pins else engine.resident or fitting.feasible(engine)
        if not fits and not fitting.eventually(engine, {request.client_id}):
            return no_place(self._state, request)
        if refused_for_s(engine, now) > 0:
            return not_reached(engine, now)
        return None

    def _cannot_wait(self, request: Waiting, now: float) -> KeepwarmError | None:
        """Why a request that would have to wait may not, or None."""
        state = self._state
        if request.deadline is not None and request.deadline <= now:
            return lateness(state, request, now)
        waiting, limit = len(state.queue), state.settings.max_queue
        if waiting >= limit:
            return queue_full("", waiting, limit)
        own = state.models[request.model].max_queue
        per_model = state.settings.max_queue_per_model if own is None else own
        if per_model is not None:
            mine = state.queue.of(request.engine_id) or ()
            waiting = sum(1 for other in mine if other.model == request.model)
            if waiting >= per_model:
                return queue_full(request.model, waiting, per_model)
        return None

    def _deny(self, event: ev.RequestArrived, error: KeepwarmError) -> bool:
        self._state.actions.append(Deny(event.request_id, event.client_id, error.to_wire()))
        return False

    # Departures

    def _admit_cancel(self, event: ev.RequestCancelled) -> None:
        soundness.ids(event.request_id)

    def _cancelled(self, event: ev.RequestCancelled, now: float) -> bool:
        request = self._state.queue.get(event.request_id)
        if request is None:
            return False
        self._state.end(request, withdrawn(request.model), now)
        return True

    def _admit_client(self, event: ev.ClientGone) -> None:
        soundness.ids(event.client_id)

    def _client_gone(self, event: ev.ClientGone, now: float) -> bool:
        state, client = self._state, event.client_id
        for request in state.queue:
            if request.client_id == client:
                state.end(request, withdrawn(request.model), now)
        for request_id, engine in list(state.leases.items()):
            if engine.leases[request_id].client_id == client:
                state.give_back(engine, request_id, now)
        for request_id in [r for r, told in state.revoked.items() if told.client_id == client]:
            del state.revoked[request_id]
        for model in state.holders.gone(client):
            state.unpin(state.residents[state.models[model].engine_id], model)
        state.declared_uses.withdraw(client)
        return True

    # Leases

    def _admit_end(self, event: ev.LeaseEnded | ev.LeaseYielded) -> None:
        """Raise `InvalidRequest` unless the client holds the lease, or was told that it is over."""
        if type(event.request_id) is str:
            engine = self._state.leases.get(event.request_id)
            if engine is not None and engine.leases[event.request_id].client_id == event.client_id:
                return
            told = self._state.revoked.get(event.request_id)
            if told is not None and told.client_id == event.client_id:
                return
        raise foreign_lease(event.request_id, event.client_id)

    def _lease_ended(self, event: ev.LeaseEnded, now: float) -> bool:
        engine = self._state.leases.get(event.request_id)
        if engine is None:
            del self._state.revoked[event.request_id]
            return False
        engine.deaths = 0
        self._state.give_back(engine, event.request_id, now)
        return True

    def _admit_taken(self, event: ev.LeaseTaken) -> None:
        soundness.ids(event.request_id)
        soundness.error(event.error)

    def _lease_taken(self, event: ev.LeaseTaken, now: float) -> bool:
        engine = self._state.leases.get(event.request_id)
        if engine is None:
            return False
        self._state.revoke(engine, event.request_id, event.error)
        self._state.give_back(engine, event.request_id, now)
        return True

    def _lease_yielded(self, event: ev.LeaseYielded, now: float) -> bool:
        take_yielded(self._state, event, now)
        return True
