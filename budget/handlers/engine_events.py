"""Events of engines and devices: loads, ends, what engines take, and what devices have left."""

from __future__ import annotations

from typing import Any

from budget import events as ev
from budget.actions import LowMemory
from budget.admission.state import CoreState
from budget.books.engines import EngineRecord
from budget.books.ledger import UNJUDGED_AT_MOST_S, Ledger
from budget.books.states import State, Trigger
from budget.errors import InternalError
from budget.footprint import HOST
from budget.handlers.backoff import after_failure, not_reached
from budget.handlers.reconfigure import drop_if_retired
from budget.handlers.rule import EventRule
from budget.recovery import soundness

Told = ev.LoadFinished | ev.LoadEndedBadly | ev.EngineGone | ev.UnloadFinished | ev.EngineMeasured

DEATHS_BEFORE_DENIAL = 2
"""An engine that died this often without serving a request is not restarted for those that wait."""


class EngineEvents:
    """Handles the events that tell of engines and devices."""

    def __init__(self, state: CoreState) -> None:
        self._state = state
        self.rules: dict[type[Any], EventRule] = {
            ev.LoadFinished: EventRule(self._admit_loaded, self._load_finished, certain=True),
            ev.LoadEndedBadly: EventRule(self._admit_failure, self._load_failed, certain=True),
            ev.EngineGone: EventRule(self._admit_death, self._engine_died, certain=True),
            ev.UnloadFinished: EventRule(self._admit_unloaded, self._unload_finished, certain=True),
            ev.EngineMeasured: EventRule(self._admit_measured, self._engine_measured),
            ev.EngineEstimated: EventRule(self._admit_estimated, self._engine_estimated),
            ev.DeviceMeasured: EventRule(self._admit_room, self._device_measured),
        }

    # What can be

    def _alive(self, event: Told, trigger: Trigger | None) -> EngineRecord:
        """The engine of an event; raises `InternalError` when it tells of what cannot be."""
        soundness.ids(event.engine_id)
        engine = self._state.residents.get(event.engine_id)
        if engine is None:
            raise InternalError(f"event for unknown engine {event.engine_id!r}")
        if engine.generation != event.generation:
            raise InternalError(
                f"event for {event.engine_id} generation {event.generation}, which is over: {engine!r}",
                hint="Last events, oldest first: " + engine.tell(),
            )
        if trigger is not None:
            engine.must_be_able_to(trigger)
        return engine

    def _admit_loaded(self, event: ev.LoadFinished) -> None:
        self._alive(event, Trigger.LOADED)
        if event.bookings is not None:
            self._state.residents.must_be_possible(event.engine_id, event.bookings)

    def _admit_failure(self, event: ev.LoadEndedBadly) -> None:
        self._alive(event, Trigger.LOAD_FAILED)
        soundness.error(event.error)

    def _admit_death(self, event: ev.EngineGone) -> None:
        self._alive(event, Trigger.DIED)
        soundness.error(event.error)

    def _admit_unloaded(self, event: ev.UnloadFinished) -> None:
        self._alive(event, Trigger.UNLOADED)

    def _admit_measured(self, event: ev.EngineMeasured) -> None:
        self._alive(event, None)
        self._state.residents.must_be_possible(event.engine_id, event.bookings)

    def _admit_estimated(self, event: ev.EngineEstimated) -> None:
        engine = self._state.residents.get(event.engine_id)
        if engine is None:
            raise InternalError(f"unknown engine {event.engine_id!r} was estimated")
        soundness.options(event.options)
        self._state.residents.must_be_estimable(engine, event.options)

    def _admit_room(self, event: ev.DeviceMeasured) -> None:
        if event.device not in self._state.residents.books:
            raise InternalError(f"unknown device {event.device!r} was measured")
        soundness.figures(available=event.available_bytes, free=event.free_bytes)
        soundness.figures(asleep=event.asleep_bytes)
        if type(event.reserve_bytes) is not int:
            raise InternalError(f"the reserve is {event.reserve_bytes!r}")

    # What follows

    def _load_finished(self, event: ev.LoadFinished, now: float) -> bool:
        engine = self._state.residents[event.engine_id]
        self._state.residents.loaded(engine, now)
        if engine.state is State.IDLE:
            engine.failures = 0
            engine.last_error = None
            self._state.restless[engine.engine_id] = engine
            awaited = engine.demand or engine.pins or engine.engine_id in self._state.prefetched
            if not awaited:
                # The request it was loaded for is gone: its keep_alive begins now.
                engine.used_since_load = True
            if engine.immune_until:
                engine.immune_until = now + self._state.settings.max_wait_s
            if event.bookings is not None:
                self._correct(engine, event.bookings)
        return True

    def _load_failed(self, event: ev.LoadEndedBadly, now: float) -> bool:
        engine = self._state.residents[event.engine_id]
        self._state.lost(engine)
        self._state.residents.gone(engine, Trigger.LOAD_FAILED, now)
        if engine.state is State.FAILED:
            smaller = self._smaller_option(engine, event) if event.out_of_memory else None
            if smaller is not None:
                engine.min_option = smaller
            else:
                engine.failures += 1
                engine.min_option = 0
                after_failure(engine, event.error, now)
                self._end_all(engine, now)
            drop_if_retired(self._state, engine)
        return True

    def _smaller_option(self, engine: EngineRecord, event: ev.LoadEndedBadly) -> int | None:
        """The next option that asks the device which refused for less; tried once.

        Where the device is not known, it is any but the host, which alone cannot be spared.
        """
        if engine.min_option:
            return None
        tried = dict(engine.option.bookings)
        named = [device for device in tried if device == event.refused_device]
        suspects = named or [device for device in tried if device != HOST] or list(tried)
        first = engine.option_index + 1
        while later := self._state.fitting.feasible(engine, first):
            for index in later:
                asked = dict(engine.spec.options[index].bookings)
                more = [asked.get(device, 0) - tried[device] for device in suspects]
                if max(more) <= 0 and min(more) < 0:
                    return index
            first = max(later) + 1
        return None

    def _end_all(self, engine: EngineRecord, now: float) -> None:
        for request in list(self._state.queue.of(engine.engine_id) or ()):
            self._state.end(request, not_reached(engine, now), now)

    def _engine_died(self, event: ev.EngineGone, now: float) -> bool:
        engine = self._state.residents[event.engine_id]
        for request_id in engine.leases:
            del self._state.leases[request_id]
            self._state.interruptible.discard(request_id)
            self._state.asked.discard(request_id)
            self._state.revoke(engine, request_id, event.error)
        engine.leases.clear()
        self._state.claims.drained(engine)
        self._state.lost(engine)
        self._state.residents.gone(engine, Trigger.DIED, now)
        if engine.state is State.FAILED:
            engine.deaths += 1
            after_failure(engine, event.error, now)
            if engine.deaths >= DEATHS_BEFORE_DENIAL:
                self._end_all(engine, now)
            drop_if_retired(self._state, engine)
        return True

    def _unload_finished(self, event: ev.UnloadFinished, now: float) -> bool:
        engine = self._state.residents[event.engine_id]
        self._state.residents.gone(engine, Trigger.UNLOADED, now)
        drop_if_retired(self._state, engine)
        return True

    def _engine_measured(self, event: ev.EngineMeasured, _now: float) -> bool:
        engine = self._state.residents[event.engine_id]
        if engine.resident:
            self._correct(engine, event.bookings)
        return engine.resident

    def _correct(self, engine: EngineRecord, bookings: tuple[tuple[str, int], ...]) -> None:
        self._state.residents.correct(engine, bookings)
        self._state.unsettled.update(device for device, _ in bookings)

    def _engine_estimated(self, event: ev.EngineEstimated, _now: float) -> bool:
        engine = self._state.residents[event.engine_id]
        self._state.residents.estimate(engine, event.options)
        # What was promised to it was counted in the bytes of before.
        self._state.claims.drop(event.engine_id)
        self._state.fitting.place_pins()
        return True

    def _device_measured(self, event: ev.DeviceMeasured, now: float) -> bool:
        ledger = self._state.residents.books[event.device]
        self._note_asleep(ledger, event.asleep_bytes)
        ledger.available_bytes = event.available_bytes
        room = self._judged(ledger, event, now)
        if room is not None:
            most = ledger.limit_bytes - ledger.asleep_bytes
            ledger.ceiling_bytes = max(0, min(most, room))
            self._state.unsettled.add(event.device)
        self._note_free(event)
        return True

    def _note_asleep(self, ledger: Ledger, amount: int) -> None:
        """Move the ceiling by what engines hold in their sleep, more or less than before."""
        before, ledger.asleep_bytes = ledger.asleep_bytes, amount
        if amount != before:
            most = ledger.limit_bytes - amount
            ledger.ceiling_bytes = max(0, min(most, ledger.ceiling_bytes + before - amount))
            self._state.unsettled.add(ledger.device)

    def _judged(self, ledger: Ledger, event: ev.DeviceMeasured, now: float) -> int | None:
        """The room that a measurement shows; None when it is not known, or shows nothing now.

        What an engine takes that loads or leaves is neither free nor all booked. Where loads follow
        one another without a pause a device is judged all the same, by what is certain: booked
        bytes are the engines' own, and what is free beyond the reserve may be taken.
        """
        room, since = event.available_bytes, ledger.unjudged_since
        ledger.unjudged_since = None
        if room is None or not self._state.residents.is_moving(ledger.device):
            return room
        if event.free_bytes is None or since is None or now < since + UNJUDGED_AT_MOST_S:
            ledger.unjudged_since = now if since is None else since
            return None
        return max(room, ledger.reserved_bytes + event.free_bytes - event.reserve_bytes)

    def _note_free(self, event: ev.DeviceMeasured) -> None:
        """Say once that a device has less free than its reserve, and once that it has recovered.

        It has recovered with a tenth of the reserve more than it, so that it does not flicker.
        """
        if event.free_bytes is None:
            return
        was_low = event.device in self._state.low
        enough = event.reserve_bytes + (event.reserve_bytes // 10 if was_low else 0)
        low = event.free_bytes < enough
        if low == was_low:
            return
        (self._state.low.add if low else self._state.low.discard)(event.device)
        self._state.actions.append(
            LowMemory(event.device, low, event.free_bytes, event.reserve_bytes)
        )
