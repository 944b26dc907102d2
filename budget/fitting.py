"""What can ever be: the placements at which an engine can stand beside all pins."""

from __future__ import annotations

from budget.engines import Bookings, EngineRecord, EngineSpec
from budget.placing import place_together
from budget.residency import DORMANT, State
from budget.residents import Residents


class Fitting:
    """Compares placements with limits and pins. Changes nothing but where coming pins go."""

    def __init__(self, residents: Residents) -> None:
        self._residents = residents
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

    def place_pins(self) -> EngineRecord | None:
        """Choose options for the pinned engines that hold nothing, so that all fit together.

        Returns:
            None when they do, else one that finds no place; then no choice changes.
        """
        pinned = list(self._residents.pinned)
        room = {ledger.device: ledger.limit_bytes for ledger in self._books}
        for engine in pinned:
            for device, amount in engine.bookings:
                room[device] -= amount
        # Choosing an option anew changes what a pin will take.
        self._residents.pins_version += 1
        coming = [engine for engine in pinned if not engine.bookings]
        coming.sort(key=lambda e: len(e.spec.options))
        return place_together(coming, room)

    def shortfall(
        self, engine: EngineRecord, *, measured: bool = False
    ) -> tuple[str, int, int, int]:
        """Device, limit, bytes held by pins and bytes requested of the option that misses least.

        `measured`: what misses is judged by what devices were measured to have room for.
        """
        pinned = self._pinned_bytes(engine)

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
        room = {
            ledger.device: ledger.ceiling_bytes if measured else ledger.limit_bytes
            for ledger in self._books
        }
        for device, amount in self._pinned_bytes(engine).items():
            room[device] -= amount
        return room

    def _pinned_bytes(self, but: EngineRecord) -> dict[str, int]:
        pinned: dict[str, int] = {}
        for engine in self._residents.pinned:
            if engine is not but:
                for device, amount in engine.bookings or engine.option.bookings:
                    pinned[device] = pinned.get(device, 0) + amount
        return pinned


def _fits(bookings: Bookings, room: dict[str, int]) -> bool:
    for device, amount in bookings:  # noqa: SIM110 (a generator takes twice as long)
        if amount > room[device]:
            return False
    return True
