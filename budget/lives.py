"""What engines report of their lives, what they take, and what devices have left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from budget import events as ev
from budget.actions import LowMemory
from budget.desk import Desk
from budget.engines import EngineRecord
from budget.errors import InternalError, error_from_wire
from budget.footprint import HOST
from budget.ledger import UNJUDGED_AT_MOST_S, Ledger
from budget.reconfigure import drop_if_retired
from budget.residency import State, Trigger
from budget.scheduler import Scheduler

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
DEATHS_BEFORE_DENIAL = 2
"""An engine that died this often without serving anybody is not restarted for those who wait."""


class Lives:
    """Handles the events that tell of engines and devices."""

    def __init__(self, desk: Desk, scheduler: Scheduler) -> None:
        self._desk = desk
        self._scheduler = scheduler
        self.handlers: dict[type[Any], Callable[[Any, float], None]] = {
            ev.LoadFinished: self._on_load_finished,
            ev.LoadFailed: self._on_load_failed,
            ev.EngineDied: self._on_engine_died,
            ev.UnloadFinished: self._on_unload_finished,
            ev.EngineMeasured: self._on_engine_measured,
            ev.EngineEstimated: self._on_engine_estimated,
            ev.DeviceMeasured: self._on_device_measured,
        }

    def _alive(self, engine_id: str, generation: int) -> EngineRecord:
        if engine_id not in self._desk.residents:
            raise InternalError(f"event for unknown engine {engine_id!r}")
        engine = self._desk.residents[engine_id]
        if engine.generation != generation:
            raise InternalError(
                f"event for {engine_id} generation {generation}, which is over: {engine!r}",
                hint="Story, oldest first: " + engine.tell(),
            )
        return engine

    def _on_load_finished(self, event: ev.LoadFinished, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        self._desk.residents.loaded(engine, now)
        if engine.state is State.IDLE:
            engine.failures = 0
            engine.last_error = None
            self._desk.restless[engine.engine_id] = engine
            awaited = engine.demand or engine.pins or engine.engine_id in self._desk.prefetched
            if not awaited:
                # Whoever it was loaded for is gone: its keep_alive begins now.
                engine.used_since_load = True
            if engine.immune_until:
                engine.immune_until = now + self._desk.settings.max_wait_s
            if event.bookings is not None:
                self._correct(engine, event.bookings)
        self._scheduler.pump(now)

    def _on_load_failed(self, event: ev.LoadFailed, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        self._desk.lost(engine)
        self._desk.residents.gone(engine, Trigger.LOAD_FAILED, now)
        if engine.state is State.FAILED:
            smaller = self._smaller_option(engine, event) if event.out_of_memory else None
            if smaller is not None:
                engine.min_option = smaller
            else:
                engine.failures += 1
                engine.min_option = 0
                self._failed(engine, event.error, now)
                self._end_all(engine, event.error, now)
            drop_if_retired(self._desk, engine)
        self._scheduler.pump(now)

    def _smaller_option(self, engine: EngineRecord, event: ev.LoadFailed) -> int | None:
        """The next option that asks the device which refused for less; tried once.

        Where the device is not known, it is any but the host, which alone cannot be spared.
        """
        if engine.min_option:
            return None
        tried = dict(engine.option.bookings)
        named = [device for device in tried if device == event.refused_device]
        suspects = named or [device for device in tried if device != HOST] or list(tried)
        first = engine.option_index + 1
        while later := self._desk.fitting.feasible(engine, first):
            for index in later:
                asked = dict(engine.spec.options[index].bookings)
                more = [asked.get(device, 0) - tried[device] for device in suspects]
                if max(more) <= 0 and min(more) < 0:
                    return index
            first = max(later) + 1
        return None

    def _failed(self, engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
        """Remember a failure: the next try of a pinned engine waits longer each time.

        From the second in a row on requests are refused until then, too.
        """
        engine.last_error = dict(error)
        patience = FIRST_BACKOFF_S * 2.0 ** min(engine.setbacks - 1, 16)
        engine.retry_at = now + min(MAX_BACKOFF_S, patience)

    def _end_all(self, engine: EngineRecord, error: Mapping[str, Any], now: float) -> None:
        for request in list(self._desk.queue.of(engine.engine_id) or ()):
            self._desk.end(request, error_from_wire(dict(error)), now)

    def _on_engine_died(self, event: ev.EngineDied, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        for request_id in engine.leases:
            del self._desk.leases[request_id]
            self._desk.interruptible.discard(request_id)
            self._desk.asked.discard(request_id)
            self._desk.revoke(engine, request_id, event.error)
        engine.leases.clear()
        self._desk.claims.drained(engine)
        self._desk.lost(engine)
        self._desk.residents.gone(engine, Trigger.DIED, now)
        if engine.state is State.FAILED:
            engine.deaths += 1
            self._failed(engine, event.error, now)
            if engine.deaths >= DEATHS_BEFORE_DENIAL:
                self._end_all(engine, event.error, now)
            drop_if_retired(self._desk, engine)
        self._scheduler.pump(now)

    def _on_unload_finished(self, event: ev.UnloadFinished, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        self._desk.residents.gone(engine, Trigger.UNLOADED, now)
        drop_if_retired(self._desk, engine)
        self._scheduler.pump(now)

    def _on_engine_measured(self, event: ev.EngineMeasured, now: float) -> None:
        engine = self._alive(event.engine_id, event.generation)
        if engine.resident:
            self._correct(engine, event.bookings)
            self._scheduler.pump(now)

    def _correct(self, engine: EngineRecord, bookings: tuple[tuple[str, int], ...]) -> None:
        self._desk.residents.correct(engine, bookings)
        self._desk.unsettled.update(device for device, _ in bookings)

    def _on_engine_estimated(self, event: ev.EngineEstimated, now: float) -> None:
        if event.engine_id not in self._desk.residents:
            raise InternalError(f"unknown engine {event.engine_id!r} was estimated")
        engine = self._desk.residents[event.engine_id]
        self._desk.residents.estimate(engine, event.options)
        # What was promised to it was counted in the bytes of before.
        self._desk.claims.drop(event.engine_id)
        self._desk.fitting.place_pins()
        self._scheduler.pump(now)

    def _on_device_measured(self, event: ev.DeviceMeasured, now: float) -> None:
        if event.device not in self._desk.residents.books:
            raise InternalError(f"unknown device {event.device!r} was measured")
        ledger = self._desk.residents.books[event.device]
        ledger.available_bytes = event.available_bytes
        room = self._judged(ledger, event, now)
        if room is not None:
            ledger.ceiling_bytes = min(ledger.limit_bytes, max(0, room))
            self._desk.unsettled.add(event.device)
        self._note_free(event)
        self._scheduler.pump(now)

    def _judged(self, ledger: Ledger, event: ev.DeviceMeasured, now: float) -> int | None:
        """The room that a measurement shows; None when it is not known, or shows nothing now.

        What an engine takes that loads or leaves is neither free nor all booked. Where loads follow
        one another without a pause a device is judged all the same, by what is certain: booked
        bytes are the engines' own, and what is free beyond the reserve may be taken.
        """
        room, since = event.available_bytes, ledger.unjudged_since
        ledger.unjudged_since = None
        if room is None or not self._desk.residents.is_moving(ledger.device):
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
        was_low = event.device in self._desk.low
        enough = event.reserve_bytes + (event.reserve_bytes // 10 if was_low else 0)
        low = event.free_bytes < enough
        if low == was_low:
            return
        (self._desk.low.add if low else self._desk.low.discard)(event.device)
        self._desk.actions.append(
            LowMemory(event.device, low, event.free_bytes, event.reserve_bytes)
        )
