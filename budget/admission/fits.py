"""Feasibility: the placements at which an engine fits beside all pins, with all else evicted.

A pin that ends with another client is no reason to say never: `eventually` counts only pins that last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from budget.admission.joint import options_together, place_together
from budget.books.engines import Bookings, EngineRecord, EngineSpec
from budget.books.pin_holders import PinHolders
from budget.books.residents import Residents
from budget.books.states import DORMANT, State


class Fitting:
    """Compares placements with limits and pins. Changes nothing but where coming pins go."""

    def __init__(self, residents: Residents, holders: PinHolders) -> None:
        self._residents = residents
        self._holders = holders
        self._books = residents.books
        self._feasible: dict[str, tuple[tuple[int, int, int], EngineSpec, list[int]]] = {}

    def feasible(
        self, engine: EngineRecord, first: int | None = None, *, measured: bool = False
    ) -> list[int]:
        """The options of the lowest tier that fit beside all pins; empty when none ever can.

        `first`: the first option to look at; by default the first not known to be refused.
        `measured`: against what devices were measured to have room for, not their limits.
        """
        if first is not None or measured:
            return self._fitting(engine, engine.min_option if first is None else first, measured)
        key = (self._residents.pins_version, self._books.settings_version, engine.min_option)
        known = self._feasible.get(engine.engine_id)
        if known is None or known[0] != key or known[1] is not engine.spec:
            fitting = self._fitting(engine, engine.min_option, measured)
            known = self._feasible[engine.engine_id] = (key, engine.spec, fitting)
        return known[2]

    def eventually(
        self,
        engine: EngineRecord,
        clients: Collection[str],
        programs: Collection[str] = (),
        *,
        measured: bool = False,
    ) -> bool:
        """Whether an engine fits once the pins have ended that end with other clients than these.

        `programs`: nor with connections of these. `measured`: as for `feasible`.
        """
        room = self._limits(measured=measured)
        for device, amount in self._lasting_bytes(engine, clients, programs).items():
            room[device] -= amount
        return any(_fits(o.bookings, room) for o in engine.spec.options[engine.min_option :])

    def in_the_way(self, engine: EngineRecord, client_id: str) -> list[str]:
        """The models, pinned by other clients for their own time, on devices that an engine needs."""
        needed = {device for option in engine.spec.options for device, _ in option.bookings}
        return [
            model
            for other in self._residents.pinned
            if other is not engine and not self._lasts(other, {client_id})
            for model in sorted(other.pins)
            if any(device in needed for device, _ in _pinned_at(other))
        ]

    def pinned_on(self, device: str, but: EngineRecord) -> list[str]:
        """The models whose pins protect bytes of a device, without those of one engine."""
        return [
            model
            for engine in self._residents.pinned
            if engine is not but and device in dict(_pinned_at(engine))
            for model in sorted(engine.pins)
        ]

    def _lasts(
        self, engine: EngineRecord, clients: Collection[str], programs: Collection[str] = ()
    ) -> bool:
        found = [self._holders.get(model) for model in engine.pins]
        return any(holders is None or holders.last_while(clients, programs) for holders in found)

    def forget(self, engine_id: str) -> None:
        """An engine is gone."""
        self._feasible.pop(engine_id, None)

    def _fitting(self, engine: EngineRecord, first: int, measured: bool) -> list[int]:  # noqa: FBT001
        room = self._room(engine, measured=measured)
        options = engine.spec.options
        fitting = [i for i in range(first, len(options)) if _fits(options[i].bookings, room)]
        if not fitting:
            return []
        tier = min([options[i].tier for i in fitting])
        return [i for i in fitting if options[i].tier == tier]

    def pinnable(self, engine: EngineRecord) -> bool:
        """Whether an engine can stay beside all pins where it is, or be loaded beside them."""
        if engine.state in DORMANT or engine.state is State.EVICTING:
            return bool(self.feasible(engine))
        return _fits(engine.bookings, self._room(engine, measured=False))

    def fits_beside(self, engine: EngineRecord, leased: Collection[EngineRecord]) -> bool:
        """Whether an engine that is not resident fits beside all pins and these engines."""
        room = self._room(engine, measured=False)
        for other in leased:
            if not other.pins:
                for device, amount in other.bookings:
                    room[device] -= amount
        return any(_fits(o.bookings, room) for o in engine.spec.options[engine.min_option :])

    def together(self, engines: Sequence[EngineRecord]) -> bool:
        """Whether engines can all be resident at once, beside the pins of others. Changes nothing."""
        room = self._limits(measured=False)
        pinned = [_pinned_at(e) for e in self._residents.pinned if e not in engines]
        for device, amount in _sum(pinned).items():
            room[device] -= amount
        found, _ = options_together(sorted(engines, key=lambda e: len(e.spec.options)), room)
        return found is not None

    def place_pins(self) -> EngineRecord | None:
        """Choose options for the pinned engines that hold nothing, so that all fit together.

        Returns:
            None when they do, else one that finds no place; then no choice changes.
        """
        pinned = list(self._residents.pinned)
        room = {ledger.device: ledger.limit_bytes for ledger in self._books}
        staying = [engine for engine in pinned if _stays(engine)]
        for engine in staying:
            for device, amount in engine.bookings:
                room[device] -= amount
        # Choosing an option anew changes what a pin will take.
        self._residents.pins_version += 1
        coming = [engine for engine in pinned if not _stays(engine)]
        coming.sort(key=lambda e: len(e.spec.options))
        return place_together(coming, room)

    def shortfall(
        self, engine: EngineRecord, *, measured: bool = False, client_id: str | None = None
    ) -> tuple[str, int, int, int]:
        """Device, limit, bytes held by pins and bytes requested of the option that misses least.

        `measured`: what misses is judged by what devices were measured to have room for. `client_id`:
        only pins count that last for this client.
        """
        pinned = (
            self._pinned_bytes(engine)
            if client_id is None
            else self._lasting_bytes(engine, {client_id})
        )

        def missing(row: tuple[str, int, int, int]) -> int:
            ledger = self._books[row[0]]
            room = ledger.ceiling_bytes if measured else ledger.limit_bytes
            return row[3] + row[2] - room

        worst = [
            max(
                (
                    (device, self._books[device].limit_bytes, pinned.get(device, 0), amount)
                    for device, amount in option.bookings
                ),
                key=missing,
            )
            for option in engine.spec.options[engine.min_option :]
        ]
        return min(worst, key=missing)

    def _room(self, engine: EngineRecord, *, measured: bool) -> dict[str, int]:
        """What each device has beside the pins of other engines, in bytes."""
        room = self._limits(measured=measured)
        for device, amount in self._pinned_bytes(engine).items():
            room[device] -= amount
        return room

    def _limits(self, *, measured: bool) -> dict[str, int]:
        return {
            ledger.device: ledger.ceiling_bytes if measured else ledger.limit_bytes
            for ledger in self._books
        }

    def _pinned_bytes(self, but: EngineRecord) -> dict[str, int]:
        return _sum([_pinned_at(e) for e in self._residents.pinned if e is not but])

    def _lasting_bytes(
        self, but: EngineRecord, clients: Collection[str], programs: Collection[str] = ()
    ) -> dict[str, int]:
        """What those pins protect that last while these wait."""
        others = [e for e in self._residents.pinned if e is not but]
        return _sum([_pinned_at(e) for e in others if self._lasts(e, clients, programs)])


def _stays(engine: EngineRecord) -> bool:
    """Whether a pinned engine is where it is to stay; one that is leaving is placed anew."""
    return bool(engine.bookings) and engine.state is not State.EVICTING


def _pinned_at(engine: EngineRecord) -> Bookings:
    """The bytes that the pin of an engine protects, now or once it is loaded."""
    return engine.bookings if _stays(engine) else engine.option.bookings


def _sum(found: Iterable[Bookings]) -> dict[str, int]:
    """Bytes by device of all of these."""
    total: dict[str, int] = {}
    for bookings in found:
        for device, amount in bookings:
            total[device] = total.get(device, 0) + amount
    return total


def _fits(bookings: Bookings, room: dict[str, int]) -> bool:
    for device, amount in bookings:  # noqa: SIM110 (a generator takes twice as long)
        if amount > room[device]:
            return False
    return True
