"""Engines that are asleep: their processes stay, their GPU's bytes are another engine's.

To the core such an engine is absent, so that no request is ever sent to it. What it holds meanwhile (its
weights in the host's memory, say) is no booking of an engine: it lowers what a device has room for. The
next load of the same engine wakes it. One that is in the way of a request that waits is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from backends.base import Engine
from budget import events as ev
from budget.books.states import DORMANT
from budget.core import BudgetCore
from budget.footprint import HOST
from shim.keeper.catalog.catalog import Catalog, CatalogEngine
from shim.keeper.engines.ending import Ender
from shim.keeper.engines.running_engine import Post, RunningEngine
from shim.keeper.shell.owed_events import OwedEvents

LOG = logging.getLogger("keepwarm.keeper")

ASKED_TO_LEAVE = "asked to leave"
"""The core's reason for an engine that a client unloads: such a one does not stay asleep."""


@dataclass(frozen=True, slots=True)
class Sleeper:
    """An engine that is asleep, how it was run, and the bytes that it holds meanwhile."""

    engine: Engine
    entry: CatalogEngine
    option_index: int
    held: Mapping[str, int]


class Sleepers:
    """The engines that are asleep, by engine id, the one that fell asleep first at the front."""

    def __init__(
        self,
        core: BudgetCore,
        catalog: Callable[[], Catalog],
        ender: Ender,
        post: Post,
        owed_events: OwedEvents,
    ) -> None:
        self._core = core
        self._catalog = catalog
        self._ender = ender
        self._post = post
        self._owed_events = owed_events
        self._asleep: dict[str, Sleeper] = {}

    def __contains__(self, engine_id: object) -> bool:
        return engine_id in self._asleep

    def rows(self) -> list[dict[str, Any]]:
        """The engines that are asleep, for the status."""
        return [
            {"engine": engine_id, "models": list(x.entry.names), "bytes": dict(x.held)}
            for engine_id, x in self._asleep.items()
        ]

    def held(self, device: str) -> int:
        """The bytes of a device that engines hold in their sleep."""
        return sum(sleeper.held.get(device, 0) for sleeper in self._asleep.values())

    async def put(self, running: RunningEngine, reason: str) -> bool:
        """Let an engine that leaves fall asleep instead; returns whether it did."""
        if reason == ASKED_TO_LEAVE or not self._has_room(running):
            return False
        label = running.entry.label
        held = await running.engine.sleep()
        if held is None:
            return False
        here = {device: n for device, n in held.items() if device in self._catalog().limits}
        engine_id = running.entry.engine_id
        self._asleep[engine_id] = Sleeper(running.engine, running.entry, running.option_index, here)
        LOG.info("%s is asleep and holds %s", label, here)
        self._tell(here)
        return True

    def _has_room(self, running: RunningEngine) -> bool:
        """Whether the host has room for the weights of an engine that keeps them there."""
        entry, books = running.entry.entry, self._core.state.residents.books
        if entry is None or entry.sleep != 1 or HOST not in books:
            return True
        weights = running.placement.footprints[running.placement.main_device].weights_bytes
        return weights <= books[HOST].coming_bytes

    def take(self, entry: CatalogEngine, option_index: int) -> Engine | None:
        """The engine that was put to sleep as it is to be run now; None where there is none.

        One that was run otherwise is ended.
        """
        found = self._asleep.get(entry.engine_id)
        if found is None:
            return None
        if found.option_index != option_index:
            self._end(entry.engine_id, "it is to be run otherwise")
            return None
        del self._asleep[entry.engine_id]
        # Later: the core is in the middle of the action that this is a part of.
        asyncio.get_running_loop().call_soon(self._tell, found.held)
        return found.engine

    # Those that are in the way

    def look(self, low: Collection[str]) -> None:
        """End engines whose bytes a waiting request needs, or whose model is gone. `low`: short devices."""
        if not self._asleep:
            return
        current = {engine.engine_id for engine in self._catalog().configured()}
        for engine_id in [e for e in self._asleep if e not in current]:
            self._end(engine_id, "its model is not configured any more")
        for engine_id, sleeper in list(self._asleep.items()):
            short = self._short(engine_id) | set(low)
            if any(sleeper.held.get(device, 0) for device in short):
                self._end(engine_id, f"its bytes on {', '.join(sorted(short))} are needed")
                return

    def _short(self, but: str) -> set[str]:
        """The devices on which another request than one for `but` waits for bytes that sleepers hold.

        Not one for which the bytes of engines that leave are enough, nor one that all sleepers together
        could not serve: that waits for the end of an engine's work.
        """
        residents = self._core.state.residents
        found: set[str] = set()
        for engine in residents:
            if not engine.demand or engine.state not in DORMANT or engine.spec.engine_id == but:
                continue
            own = self._asleep.get(engine.spec.engine_id)
            coming = {
                device: books.coming_bytes + (own.held.get(device, 0) if own else 0)
                for device, books in residents.books.ledgers.items()
            }
            wanted = [dict(option.bookings) for option in engine.spec.options]
            if any(all(n <= coming[d] for d, n in option.items()) for option in wanted):
                continue
            for option in wanted:
                short = {d for d, n in option.items() if n > coming[d]}
                if all(option[d] <= residents.books[d].coming_bytes + self.held(d) for d in short):
                    found |= short
        return found

    def _end(self, engine_id: str, why: str) -> None:
        sleeper = self._asleep.pop(engine_id)
        label = sleeper.entry.label
        LOG.info("ending %s in its sleep: %s", label, why)

        async def end() -> None:
            await self._ender.end(sleeper.engine, label)
            self._tell(sleeper.held)

        self._owed_events.aside("stop", f"ending {label}, which was asleep,", end)

    def _tell(self, devices: Mapping[str, int]) -> None:
        """Tell the core what is held of some devices now."""
        for device in devices:
            self._post(ev.DeviceMeasured(device, None, asleep_bytes=self.held(device)))

    # The keeper's end

    async def close(self) -> None:
        """End all of them."""
        left = list(self._asleep.values())
        self._asleep.clear()
        await asyncio.gather(*(self._ender.end(x.engine, x.entry.label) for x in left))

    def kill(self) -> None:
        """Kill all of them at once."""
        for sleeper in self._asleep.values():
            self._ender.kill(sleeper.engine, sleeper.entry.label)
