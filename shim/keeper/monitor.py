"""What engines take and what devices have left, measured every two seconds."""

from __future__ import annotations

import asyncio
import itertools
import logging

from backends.devices import free_bytes, is_rpc
from budget import events as ev
from budget.errors import KeepwarmError
from budget.footprint import HOST
from budget.measured import room_bytes
from budget.policies import EvictionPolicy
from shim.keeper.experience import remember
from shim.keeper.life import Life
from shim.keeper.shell import Shell

LOG = logging.getLogger("keepwarm.keeper")

MEASURE_EVERY_S = 2.0
REMEMBER_EVERY = 30
"""Measurements between two savings of what the policy learned."""


class Monitor:
    """Feeds measurements to a shell's core; saves what the policy learned and drops what is too old."""

    def __init__(self, shell: Shell, policy: EvictionPolicy) -> None:
        self._shell = shell
        self._policy = policy

    async def run(self) -> None:
        """Measure until it is cancelled."""
        for count in itertools.count(1):
            await asyncio.sleep(MEASURE_EVERY_S)
            if count % REMEMBER_EVERY == 0:
                remember(self._policy)
                self._shell.lives.kv.expire()
            try:
                await self.measure()
            except KeepwarmError:
                raise
            except Exception:
                LOG.exception("measuring memory")

    async def measure(self) -> None:
        """Tell the core what engines take and what devices have left."""
        lives = dict(self._shell.lives.now)
        free, taken, cached = await asyncio.to_thread(self._read_memory, lives)
        for engine_id, measured in taken.items():
            life = lives[engine_id]
            if self._shell.lives.now.get(engine_id) is life and life.ready:
                self._correct(engine_id, life, measured)
        for device, free_now in free.items():
            ours = sum(measured.get(device, 0) for measured in taken.values())
            reserve = self._shell.lives.catalog.devices.reserves.get(device, 0)
            room = room_bytes(free_now, ours, cached if device == HOST else 0, reserve)
            self._shell.post(ev.DeviceMeasured(device, room, free_now, reserve))

    def _read_memory(
        self, lives: dict[str, Life]
    ) -> tuple[dict[str, int], dict[str, dict[str, int]], int]:
        cached = sum(life.engine.cached_bytes() for life in lives.values())
        taken = {engine_id: dict(life.engine.memory()) for engine_id, life in lives.items()}
        # What an RPC server has left, only it knows: its limit is all that counts.
        here = [device for device in self._shell.lives.catalog.limits if not is_rpc(device)]
        return {device: free_bytes(device) for device in here}, taken, cached

    def _correct(self, engine_id: str, life: Life, measured: dict[str, int]) -> None:
        """Book what an engine was found to take where that is more, and learn for its next load."""
        engine = self._shell.core.desk.residents[engine_id]
        if not engine.resident or engine.generation != life.generation:
            return
        corrected = tuple((d, max(b, measured.get(d, 0))) for d, b in engine.bookings)
        if corrected != engine.bookings:
            self._shell.post(ev.EngineMeasured(engine_id, life.generation, corrected))
        self._shell.lives.learn(engine_id, life, measured)
