"""Engines and books together: every move of residency moves the bytes that go with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from budget.books.engines import Bookings, EngineRecord, EngineSpec, Lease, PlacementOption
from budget.books.ledger import EVICTABLE, LEAVING, PROTECTED, Books, Hold
from budget.books.states import (
    DORMANT,
    EVICTING,
    IDLE,
    LAST_LEASE_ENDED,
    LEASE,
    LEASED,
    LOADING,
    Trigger,
)
from budget.errors import InternalError
from budget.recovery.soundness import wrong_bookings


class Residents:
    """All engines of the core; their residency changes only by the methods of this class."""

    def __init__(self, limits: Mapping[str, int], specs: Iterable[EngineSpec]) -> None:
        self.books = Books(limits)
        self._engines: dict[str, EngineRecord] = {}
        self._pinned: dict[str, EngineRecord] = {}
        self._on_device: dict[str, dict[str, EngineRecord]] = {d: {} for d in limits}
        self.pins_version = 0
        """Changes whenever the bytes of the pinned engines may have changed."""
        self.loading: dict[str, EngineRecord] = {}
        """The engines whose loads are under way."""
        for spec in specs:
            self.add(spec)

    def __getitem__(self, engine_id: str) -> EngineRecord:
        return self._engines[engine_id]

    def __contains__(self, engine_id: object) -> bool:
        return engine_id in self._engines

    def __iter__(self) -> Iterator[EngineRecord]:
        return iter(self._engines.values())

    def get(self, engine_id: str) -> EngineRecord | None:
        """An engine, or None when it is not known."""
        return self._engines.get(engine_id)

    def load_seconds(self, engine_ids: Collection[str]) -> list[float]:
        """What loading each of these engines is expected to cost; 0 for one that cannot be loaded."""
        known = self._engines
        try:
            # Nearly always all are there; this is asked for several times at every eviction.
            return [(r := known[e]).spec.options[r.option_index].load_seconds for e in engine_ids]
        except (KeyError, IndexError):
            there = [known.get(engine_id) for engine_id in engine_ids]
            return [r.option.load_seconds if r and r.spec.options else 0.0 for r in there]

    def add(self, spec: EngineSpec) -> EngineRecord:
        """Make an engine known; it starts absent."""
        for option in spec.options:
            self.must_be_possible(spec.engine_id, option.bookings)
        record = EngineRecord(spec)
        self._engines[spec.engine_id] = record
        return record

    def estimate(self, engine: EngineRecord, options: tuple[PlacementOption, ...]) -> None:
        """Replace what an engine's placements take; an engine that is resident is not touched."""
        engine.specify(replace(engine.spec, options=options))

    def respecify(self, engine: EngineRecord, spec: EngineSpec) -> None:
        """Replace what an engine may be: now, or from its next load on where this one has another form."""
        if engine.state in DORMANT:
            self._begin_as(engine, spec)
        elif len(spec.options) == len(engine.spec.options):
            self.estimate(engine, spec.options)
            engine.spec_ahead = spec if spec.slots != engine.spec.slots else None
        else:
            engine.spec_ahead = spec

    @staticmethod
    def _begin_as(engine: EngineRecord, spec: EngineSpec) -> None:
        if len(spec.options) != len(engine.spec.options):
            engine.option_index = engine.min_option = 0
        engine.specify(spec)
        engine.spec_ahead = None

    def must_be_estimable(self, engine: EngineRecord, options: tuple[PlacementOption, ...]) -> None:
        """Raise `InternalError` unless these can replace an engine's placements."""
        if len(options) != len(engine.spec.options):
            raise InternalError(f"{engine!r} has {len(engine.spec.options)} options: {options}")
        for option in options:
            self.must_be_possible(engine.engine_id, option.bookings)

    @property
    def pinned(self) -> Iterable[EngineRecord]:
        """The engines that eviction may not touch, in the order in which they were pinned."""
        return self._pinned.values()

    @property
    def pinned_ids(self) -> Collection[str]:
        """The ids of the pinned engines."""
        return self._pinned.keys()

    def pin(self, engine: EngineRecord, model: str) -> None:
        """Protect an engine for a model's sake."""
        engine.pins.add(model)
        self.pins_version += 1
        self._pinned[engine.engine_id] = engine
        self.classify(engine)

    def unpin(self, engine: EngineRecord, model: str) -> None:
        """End what `pin` did; no effect when that model did not pin it."""
        engine.pins.discard(model)
        self.pins_version += 1
        if not engine.pins:
            self._pinned.pop(engine.engine_id, None)
        self.classify(engine)

    def drop(self, engine: EngineRecord) -> None:
        """Forget a retired engine that holds nothing."""
        if self.books.entry(engine.engine_id) is not None:
            raise InternalError(f"{engine!r} is dropped while it holds bytes")
        del self._engines[engine.engine_id]
        self._pinned.pop(engine.engine_id, None)

    def on_device(self, device: str) -> Iterable[EngineRecord]:
        """The engines with bytes booked on a device, in the order in which they came."""
        return self._on_device[device].values()

    def is_moving(self, device: str) -> bool:
        """Whether an engine with bytes on a device is loading or being evicted."""
        return any(e.state in (LOADING, EVICTING) for e in self.on_device(device))

    def book(self, engine: EngineRecord, option_index: int, now: float, reason: str) -> None:
        """Book an option's bytes and start a new generation: ABSENT or FAILED to LOADING."""
        bookings = engine.spec.options[option_index].bookings
        self.books.book(engine.engine_id, bookings)
        engine.move(Trigger.BOOK, now, reason)
        engine.generation += 1
        self.loading[engine.engine_id] = engine
        engine.released = False
        engine.option_index = option_index
        self._placed(engine, bookings)

    def loaded(self, engine: EngineRecord, now: float) -> None:
        """Note that the load of an engine has finished; its idle time begins."""
        self.loading.pop(engine.engine_id, None)
        if engine.move(Trigger.LOADED, now) is IDLE:
            engine.loaded_at = engine.idle_since = engine.last_used = now
            engine.used_since_load = False
            self.classify(engine)

    def lease(self, engine: EngineRecord, lease: Lease, now: float) -> None:
        """Give a slot to a request."""
        engine.move(LEASE, now, lease.request_id)
        engine.leases[lease.request_id] = lease
        engine.last_used = now
        engine.uses += 1
        engine.used_since_load = True
        engine.released = False
        if len(engine.leases) == 1:
            self.books.hold(engine.engine_id, PROTECTED)

    def end_lease(self, engine: EngineRecord, request_id: str, now: float) -> None:
        """Take a slot back."""
        del engine.leases[request_id]
        engine.last_used = now
        if not engine.leases:
            engine.move(LAST_LEASE_ENDED, now, request_id)
            engine.idle_since = now
            if not engine.pins:
                self.books.hold(engine.engine_id, EVICTABLE)

    def leave(self, engine: EngineRecord, now: float, reason: str) -> bool:
        """Start evicting an idle engine, or abandon a loading one; returns whether it was loading."""
        loading = engine.state is LOADING
        self.loading.pop(engine.engine_id, None)
        engine.move(Trigger.ABANDON if loading else Trigger.EVICT, now, reason)
        engine.draining_for = None
        self.books.hold(engine.engine_id, LEAVING)
        return loading

    def gone(self, engine: EngineRecord, trigger: Trigger, now: float) -> None:
        """Give the bytes of an engine back whose process is gone (unloaded, failed or died)."""
        if engine.move(trigger, now) is EVICTING:
            return
        self.loading.pop(engine.engine_id, None)
        engine.draining_for = None
        engine.leave_when_idle = False
        self.books.release(engine.engine_id)
        self._displaced(engine)
        engine.bookings = ()
        if engine.spec_ahead is not None:
            self._begin_as(engine, engine.spec_ahead)
        self.pins_version += bool(engine.pins)

    def correct(self, engine: EngineRecord, bookings: Bookings) -> None:
        """Replace booked bytes by measured ones."""
        self.books.correct(engine.engine_id, bookings)
        self._displaced(engine)
        self._placed(engine, bookings)

    def must_be_possible(self, engine_id: str, bookings: Bookings) -> None:
        """Raise `InternalError` unless an engine can take these bytes on these devices."""
        wrong = wrong_bookings(bookings)
        if wrong or not all(device in self.books for device, _ in bookings):
            raise InternalError(f"{engine_id} cannot take {bookings}", hint=wrong)

    def classify(self, engine: EngineRecord) -> None:
        """Say anew whether an engine's bytes are evictable."""
        if engine.state in (LOADING, IDLE, LEASED):
            evictable = engine.state is IDLE and not engine.pinned
            self.books.hold(engine.engine_id, EVICTABLE if evictable else PROTECTED)

    def _placed(self, engine: EngineRecord, bookings: Bookings) -> None:
        engine.bookings = bookings
        self.pins_version += bool(engine.pins)
        for device, _ in bookings:
            self._on_device[device][engine.engine_id] = engine

    def _displaced(self, engine: EngineRecord) -> None:
        for device, _ in engine.bookings:
            del self._on_device[device][engine.engine_id]

    def rebuild(self) -> None:
        """Make books and tables anew from what the engines' own records say."""
        engines = list(self._engines.values())
        holding = [engine for engine in engines if engine.state not in DORMANT]
        self.books.rebuild({e.engine_id: (e.bookings, _hold_of(e)) for e in holding})
        self._fill(self.loading, [e for e in engines if e.state is LOADING])
        self._fill(self._pinned, [e for e in engines if e.pins])
        for device, table in self._on_device.items():
            self._fill(table, [e for e in holding if device in dict(e.bookings)])
        self.pins_version += 1

    @staticmethod
    def _fill(table: dict[str, EngineRecord], engines: Iterable[EngineRecord]) -> None:
        """Tables stay the same objects: others look at them."""
        table.clear()
        table.update({engine.engine_id: engine for engine in engines})

    def imbalances(self) -> Iterator[str]:
        """Where books, tables and engines do not agree, in words."""
        for engine in self:
            entry = self.books.entry(engine.engine_id)
            holds = engine.state not in DORMANT
            if holds != (entry is not None):
                yield f"{engine!r} against its booking {entry}"
            if entry is not None and entry != (engine.bookings, _hold_of(engine)):
                yield f"{engine!r} is held as {entry}"
            if (engine.engine_id in self.loading) != (engine.state is LOADING):
                yield f"{engine!r} against {list(self.loading)} loading"
            if bool(engine.pins) != (engine.engine_id in self._pinned):
                yield f"{engine!r} against {list(self._pinned)} pinned"
            if bool(engine.leases) != (engine.state is LEASED):
                yield f"{engine!r} has leases {list(engine.leases)}"
            slots = [lease.slot for lease in engine.leases.values()]
            if len(set(slots)) != len(slots) or len(slots) > engine.spec.slots:
                yield f"{engine!r} has slots {slots}"
        for device, table in self._on_device.items():
            booked = {e.engine_id for e in self if device in dict(e.bookings)}
            if booked != table.keys():
                yield f"{sorted(booked)} have bytes on {device} against {sorted(table)}"


def _hold_of(engine: EngineRecord) -> Hold:
    """How firmly the bytes of an engine that holds some are held."""
    if engine.state is EVICTING:
        return LEAVING
    if engine.state is IDLE and not engine.pinned:
        return EVICTABLE
    return PROTECTED
