"""What engines take and what devices have left, measured every two seconds."""

from __future__ import annotations

import asyncio

from backends.devices import free_bytes, is_rpc
from budget import events as ev
from budget.footprint import HOST
from budget.measured import room_bytes
from budget.policies import EvictionPolicy
from shim.keeper.experience import remember
from shim.keeper.life import Life
from shim.keeper.shell import Shell

MEASURE_EVERY_S = 2.0
KEEP_EVERY_S = 60.0
"""Between two savings of what the policy learned, and two looks for what is too old."""


class Monitor:
    """Feeds measurements to a shell's core; saves what the policy learned and drops what is too old."""

    def __init__(self, shell: Shell, policy: EvictionPolicy) -> None:
        self._shell = shell
        self._policy = policy

    async def remember(self) -> None:
        """Save what the policy learned."""
        remember(self._policy)

    async def expire(self) -> None:
        """Drop the conversations that are too old."""
        self._shell.lives.kv.expire()

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
