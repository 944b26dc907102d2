"""Engines whose processes start while their bytes are still somebody's who leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from dataclasses import dataclass

from backends.base import Engine
from shim.keeper.catalog import CatalogEngine


@dataclass(slots=True)
class Prepared:
    """An engine that was told to prepare; `task` ends when it has, or with why it could not."""

    engine: Engine
    entry: CatalogEngine
    option_index: int
    task: asyncio.Task[None]

    async def end(self) -> None:
        """It is not needed."""
        await asyncio.gather(self.task, return_exceptions=True)
        await self.engine.stop(grace_s=0.0)


class StartsAhead:
    """What is prepared now, by engine id; what is no longer needed ends by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._prepared: dict[str, Prepared] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._prepared)

    def prepare(
        self, engine_id: str, entry: CatalogEngine, option_index: int, engine: Engine
    ) -> None:
        """Start an engine's process; it takes next to nothing until its load begins."""
        self._discard(engine_id)
        # Whoever awaits the task gets its failure: the load, or nobody when it is not needed.
        task = self._loop.create_task(engine.prepare(entry.placements[option_index]))
        self._prepared[engine_id] = Prepared(engine, entry, option_index, task)

    def take(self, engine_id: str, entry: CatalogEngine, option_index: int) -> Prepared | None:
        """What was prepared for exactly this load, or None; anything else for this engine ends."""
        found = self._prepared.get(engine_id)
        if found is None or (found.entry, found.option_index) != (entry, option_index):
            self._discard(engine_id)
            return None
        return self._prepared.pop(engine_id)

    def keep_only(self, needed: Container[str]) -> None:
        """End what was prepared for promises that have fallen."""
        for engine_id in [e for e in self._prepared if e not in needed]:
            self._discard(engine_id)

    async def close(self) -> None:
        """End everything that was prepared."""
        for engine_id in list(self._prepared):
            self._discard(engine_id)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _discard(self, engine_id: str) -> None:
        prepared = self._prepared.pop(engine_id, None)
        if prepared is not None:
            task = self._loop.create_task(prepared.end())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
