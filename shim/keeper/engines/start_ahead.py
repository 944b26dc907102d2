"""Starts an engine's process early, while the engine that it replaces is still being stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass

from backends.base import Engine
from shim.keeper import limits
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.engines.ending import Ender, seen
from shim.keeper.shell.owed_events import OwedEvents


@dataclass(slots=True)
class StartedAhead:
    """An engine that prepares its start; `task` ends when it is prepared, or with the failure."""

    engine: Engine
    entry: CatalogEngine
    option_index: int
    task: asyncio.Task[None]


class StartsAhead:
    """The prepared engines, by engine id. Unneeded ones are ended in the background."""

    def __init__(self, owed_events: OwedEvents, ender: Ender) -> None:
        self._owed_events = owed_events
        self._ender = ender
        self._prepared: dict[str, StartedAhead] = {}

    def __bool__(self) -> bool:
        return bool(self._prepared)

    def prepare(
        self, engine_id: str, entry: CatalogEngine, option_index: int, engine: Engine
    ) -> None:
        """Start an engine's process; it takes a few megabytes until its load begins."""
        self._discard(engine_id)
        task = asyncio.get_running_loop().create_task(_prepare(engine, entry, option_index))
        # The load that takes the engine reads the failure. Without a load the failure has no effect.
        task.add_done_callback(seen)
        self._prepared[engine_id] = StartedAhead(engine, entry, option_index, task)

    def take(self, engine_id: str, entry: CatalogEngine, option_index: int) -> StartedAhead | None:
        """The engine prepared for exactly this load, or None. An engine prepared otherwise is ended."""
        found = self._prepared.get(engine_id)
        if found is None or (found.entry, found.option_index) != (entry, option_index):
            self._discard(engine_id)
            return None
        return self._prepared.pop(engine_id)

    def keep_only(self, needed: Container[str]) -> None:
        """End the prepared engines that are not in `needed`."""
        for engine_id in [e for e in self._prepared if e not in needed]:
            self._discard(engine_id)

    async def close(self) -> None:
        """End all prepared engines, and wait for it."""
        left = list(self._prepared.values())
        self._prepared.clear()
        await asyncio.gather(*(self._end(prepared) for prepared in left))

    def _discard(self, engine_id: str) -> None:
        prepared = self._prepared.pop(engine_id, None)
        if prepared is not None:
            what = f"ending {prepared.entry.label}, which was prepared,"
            self._owed_events.aside("prepare", what, lambda: self._end(prepared))

    async def _end(self, prepared: StartedAhead) -> None:
        label = prepared.entry.label
        if not await self._ender.settle(prepared.task, limits.STOP_S, f"preparing {label}"):
            prepared.task.cancel()
        await self._ender.end(prepared.engine, label)


async def _prepare(engine: Engine, entry: CatalogEngine, option_index: int) -> None:
    await engine.prepare(entry.placements[option_index])
