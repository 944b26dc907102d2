"""Measures the bytes that engines take and that devices have left, every two seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.machine.devices import free_bytes, is_rpc
from budget import events as ev
from budget.books.room import Taken, room_bytes, taken_bytes
from budget.errors import MeasurementFailed
from budget.eviction.policies import EvictionPolicy
from budget.footprint import HOST
from shim.keeper.catalog.corrections import TOLERANCE
from shim.keeper.engines.running_engine import RunningEngine
from shim.keeper.shell.actions_out import Shell
from shim.keeper.shell.policy_state import remember

MEASURE_EVERY_S = 2.0
READ_LIMIT_S = 10.0
"""A reading that takes longer (a driver that hangs) counts as unknown for that period."""
GLANCE_LIMIT_S = 1.0
"""The longest wait of `keepwarm ps` for a reading."""
KEEP_EVERY_S = 60.0
"""Seconds between two saves of what the policy learned, and between two sweeps of old conversations."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One reading of the engines that ran; None is a figure that could not be read.

    `free` is bytes by device, `taken` bytes by engine and device, `cached` the host's bytes of `taken`
    that are pages of mapped files, `failed` the engines that could not be measured, and why.
    """

    engines: Mapping[str, RunningEngine]
    free: Mapping[str, int | None]
    taken: Mapping[str, Mapping[str, int | None]]
    cached: int
    failed: Sequence[tuple[str, Exception]] = ()


class Monitor:
    """Feeds measurements to a shell's core; saves what the policy learned, drops old conversations."""

    def __init__(self, shell: Shell, policy: EvictionPolicy) -> None:
        self._shell = shell
        self._policy = policy
        self._reading: asyncio.Task[Measurement] | None = None
        self._last: Measurement | None = None
        self._before: Measurement | None = None
        """The last one that the core was told of."""

    def free_bytes(self) -> Mapping[str, int | None]:
        """What no program used at the last reading, by device; empty before the first one."""
        return {} if self._last is None else self._last.free

    async def remember(self) -> None:
        """Save what the policy learned, and how fast loads were."""
        remember(self._policy)
        self._shell.history.speeds.remember()

    async def expire(self) -> None:
        """Drop the conversations that are too old."""
        self._shell.supervisor.kv.expire()

    async def measure(self) -> None:
        """Post events with the bytes that engines take and that devices have left.

        Raises:
            MeasurementFailed: the reading does not end. The core has an event that says so.
        """
        reading = await self._read(READ_LIMIT_S)
        if reading is None:
            for device in self._here():
                self._tell(device, None, None)
            raise MeasurementFailed(f"reading memory takes over {READ_LIMIT_S:g} s.")
        self._take(reading)

    async def refresh(self) -> None:
        """Take a reading for `keepwarm ps`, without an event for the core. Failures are only noted."""
        try:
            await self._read(GLANCE_LIMIT_S)
        except Exception as error:
            self._shell.faults.note("status", "reading memory", error)

    def measured(self, engine_id: str, running: RunningEngine) -> dict[str, int | None] | None:
        """Bytes by device that an engine took at the last reading; None before its first one."""
        last = self._last
        if last is None or last.engines.get(engine_id) is not running:
            return None
        return dict(last.taken[engine_id])

    async def _read(self, limit_s: float) -> Measurement | None:
        """A reading, or the one that is under way; None where it takes longer."""
        if self._reading is None:
            engines = dict(self._shell.supervisor.now)
            self._reading = asyncio.create_task(asyncio.to_thread(_read, engines, self._here()))
        task = self._reading
        done, _ = await asyncio.wait({task}, timeout=limit_s)
        if not done:
            return None
        if self._reading is task:
            self._reading = None
        self._last = task.result()
        for what, error in self._last.failed:
            self._shell.faults.note("memory", f"measuring {what}", error)
        return self._last

    def _here(self) -> list[str]:
        """The devices that are measured: all but RPC servers, whose free bytes cannot be read here."""
        return [device for device in self._shell.supervisor.catalog.limits if not is_rpc(device)]

    def _take(self, reading: Measurement) -> None:
        for engine_id, measured in reading.taken.items():
            running = reading.engines[engine_id]
            if self._is_there(engine_id, running) and running.ready:
                self._judge(engine_id, running, measured)
        unclear = self._unclear(reading)
        for device, free_now in reading.free.items():
            ours = taken_bytes([self._of(e, device, row) for e, row in reading.taken.items()])
            cached = reading.cached if device == HOST else 0
            room = room_bytes(free_now, ours, cached, self._reserve(device))
            self._tell(device, None if device in unclear else room, free_now)
        self._before = reading
        low = [
            d for d, free in reading.free.items() if free is not None and free < self._reserve(d)
        ]
        self._shell.supervisor.sleepers.look(low)

    def _is_there(self, engine_id: str, running: RunningEngine) -> bool:
        return running.ending is None and self._shell.supervisor.now.get(engine_id) is running

    def _unclear(self, reading: Measurement) -> set[str]:
        """The devices of engines that ended meanwhile, or that the keeper ends.

        Their bytes may be in one figure of a reading and not in the other. No other engine leaves for a
        shortage that ends with them.
        """
        ended = [x for e, x in reading.engines.items() if not self._is_there(e, x)]
        return {device for x in ended for device in (HOST, *dict(x.placement.bookings))}

    def _of(self, engine_id: str, device: str, measured: Mapping[str, int | None]) -> Taken:
        """The bytes that an engine takes of a device; its booking where nothing was measured."""
        if device not in measured:
            return Taken(0, 0)
        residents = self._shell.core.state.residents
        if engine_id not in residents:
            return Taken(measured[device], 0, moving=True)
        engine = residents[engine_id]
        booked = dict(engine.bookings).get(device, 0)
        return Taken(measured[device], booked, moving=not engine.resident)

    def _reserve(self, device: str) -> int:
        return self._shell.supervisor.catalog.devices.reserves.get(device, 0)

    def _tell(self, device: str, room: int | None, free: int | None) -> None:
        asleep = self._shell.supervisor.sleepers.held(device)
        reserve = self._reserve(device)
        self._shell.post(ev.DeviceMeasured(device, room, free, reserve, asleep))

    def _judge(
        self, engine_id: str, running: RunningEngine, measured: Mapping[str, int | None]
    ) -> None:
        """End an engine that takes more than it may, else book and learn what it takes."""
        too_much = running.engine.overgrown(measured)
        if too_much is not None:
            self._shell.supervisor.end(engine_id, running.generation, too_much)
        else:
            self._correct(engine_id, running, measured)

    def _correct(
        self, engine_id: str, running: RunningEngine, measured: Mapping[str, int | None]
    ) -> None:
        """Book the measured bytes where they exceed the booking, and learn them for the next load."""
        engine = self._shell.core.state.residents[engine_id]
        if not engine.resident or engine.generation != running.generation:
            return
        known: Mapping[str, int] = {d: n for d, n in measured.items() if n is not None}
        if engine.leases:
            known = self._as_before(engine_id, running, known)
        corrected = tuple((d, max(b, known.get(d, 0))) for d, b in engine.bookings)
        if corrected != engine.bookings:
            self._shell.post(ev.EngineMeasured(engine_id, running.generation, corrected))
        # During a request, part of the measured bytes may belong to that request alone. Behind one that its
        # client gave up, the engine may be at work for a while: a peak is learned once it stands.
        if not engine.leases and self._stands(engine_id, running, known):
            self._shell.supervisor.learn(engine_id, running, known)

    def _stands(self, engine_id: str, running: RunningEngine, known: Mapping[str, int]) -> bool:
        """Whether the reading before this one found the same bytes."""
        before = self._before
        if before is None or before.engines.get(engine_id) is not running:
            return False
        then = before.taken[engine_id]
        return all(
            abs(amount - (then.get(d) or 0)) <= TOLERANCE * amount for d, amount in known.items()
        )

    def _as_before(
        self, engine_id: str, running: RunningEngine, known: Mapping[str, int]
    ) -> Mapping[str, int]:
        """What an engine takes in the middle of a request, as far as the reading before it agrees.

        One that grows past its ceiling is ended before the next reading. Others would leave for what it
        took on the way there.
        """
        before = self._before
        if before is None or before.engines.get(engine_id) is not running:
            return {}
        then = before.taken[engine_id]
        return {d: min(amount, then.get(d) or 0) for d, amount in known.items()}


def _read(engines: Mapping[str, RunningEngine], devices: list[str]) -> Measurement:
    """Read the machine: first the free bytes, then the bytes of engines (see `room_bytes` for why)."""
    free = {device: free_bytes(device) for device in devices}
    taken: dict[str, dict[str, int | None]] = {}
    failed: list[tuple[str, Exception]] = []
    cached = 0
    for engine_id, running in engines.items():
        try:
            cached += running.engine.cached_bytes()
            taken[engine_id] = dict(running.engine.memory())
        except Exception as error:
            failed.append((running.entry.label, error))
            taken[engine_id] = dict.fromkeys(dict(running.placement.bookings))
    return Measurement(engines, free, taken, cached, failed)
