"""Loads of engines: prepare, start, restore KV state, measure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container
from functools import partial
from pathlib import Path

from backends.base import Engine, LoadReport
from backends.machine.bounded_questions import asked
from budget import actions as act
from budget import events as ev
from budget.books.engines import Bookings
from budget.errors import EngineTimeout, LoadFailed, OutOfMemory
from budget.footprint import Placement
from shim.keeper import limits
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.engines.ending import seen
from shim.keeper.engines.running_engine import (
    EngineFactory,
    RunningEngine,
    failure_of,
    load_record,
    warm_up_of,
)
from shim.keeper.engines.start_ahead import StartsAhead
from shim.keeper.engines.supervisor import Supervisor
from shim.keeper.shell.fault_counts import RAISED, FaultCounts
from shim.keeper.shell.history import History
from shim.keeper.shell.load_speeds import disk_of
from shim.keeper.shell.owed_events import OwedEvent, OwedEvents

LOG = logging.getLogger("keepwarm.keeper")


class Loads:
    """Carries out the core's `Prepare` and `StartLoad`.

    Args:
        supervisor: keeps the engines that run.
        runtime: the folder of engines' sockets.
        factory: makes engines.
        history: records every load.
        owed_events: runs the loads.
        faults: counts failures of other work.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        runtime: Path,
        factory: EngineFactory,
        history: History,
        owed_events: OwedEvents,
        faults: FaultCounts,
    ) -> None:
        self.factory = factory
        self.reread: Callable[[CatalogEngine], Awaitable[None]] = _nothing
        """Called when the files of an engine changed since its bytes were computed."""
        self._supervisor = supervisor
        self._runtime = runtime
        self._history = history
        self._owed_events = owed_events
        self._faults = faults
        self._ahead = StartsAhead(owed_events, supervisor.ender)

    def expect_only(self, promised: Container[str]) -> None:
        """End prepared engines that the core does not expect any more. `promised` has the ids to keep."""
        if self._ahead:
            self._ahead.keep_only(promised)

    def prepare(self, action: act.Prepare) -> None:
        """Begin the part of an engine's start that needs no bytes."""
        entry, index = self._supervisor.catalog.engines[action.engine_id], action.option_index
        if action.engine_id in self._supervisor.sleepers:
            return
        self._ahead.prepare(action.engine_id, entry, index, self._new_engine(entry, index))

    def _new_engine(self, entry: CatalogEngine, option_index: int) -> Engine:
        """An engine that is to be started; one that is asleep as it is to be run is woken by that."""
        asleep = self._supervisor.sleepers.take(entry, option_index)
        if asleep is not None:
            return asleep
        engine = self.factory(entry, self._runtime)
        self._supervisor.kv.begin(engine, entry, entry.placements[option_index])
        return engine

    def load(self, action: act.StartLoad) -> None:
        """Begin to load an engine; `LoadFinished` or `LoadEndedBadly` follows, unless this raises."""
        entry, index = self._supervisor.catalog.engines[action.engine_id], action.option_index
        record = load_record(entry, action.generation, index, action.reason)
        self._history.loads.append(record)
        uses = self._supervisor.uses_of(action.engine_id)
        try:
            prepared = self._ahead.take(action.engine_id, entry, index)
            engine = prepared.engine if prepared else self._new_engine(entry, index)
        except BaseException as error:
            record.end_ns, record.error = time.monotonic_ns(), str(error)
            raise
        preparing = prepared.task if prepared else None
        running = RunningEngine(engine, entry, action.generation, record, index, uses, preparing)
        self._supervisor.now[action.engine_id] = running
        owed = OwedEvent(
            "load",
            f"loading {entry.label}",
            lambda: self._load(running, action),
            lambda error: _failed(running, action, error),
            lambda: self._supervisor.give_up(running),
            may_fail=True,
        )
        try:
            running.task = self._owed_events.begin(owed)
        except BaseException:
            self._supervisor.drop(action.engine_id, action.generation)
            raise

    async def _load(self, running: RunningEngine, action: act.StartLoad) -> ev.LoadFinished:
        entry, record, placement = running.entry, running.load, running.placement
        why = "; ".join(text for text in (action.reason, placement.reason) if text)
        LOG.info("loading %s (%s): %d bytes", entry.label, why, placement.total_bytes)
        await self._check_files(entry)
        running.report = await _started(running)
        await self._check_files(entry)
        await self._supervisor.kv.started(running.engine, warm_up_of(running), record)
        running.endpoint = running.engine.endpoint.to_wire()
        record.end_ns = time.monotonic_ns()
        record.storage = running.report.storage
        record.read_bytes = running.report.read_bytes
        record.fraction = 1.0
        record.file_bytes, record.phases = running.report.file_bytes, running.report.phases
        record.ready_ns = running.report.ready_ns
        files = [row[0] for row in entry.stamp]
        self._history.rate(record, await asked(partial(disk_of, files)))
        bookings = self._learn_from_load(running)
        self._supervisor.begin_watch(running)
        seconds = (record.end_ns - record.start_ns) / 1e9
        LOG.info("loaded %s in %.3f s (%s)", entry.label, seconds, record.storage)
        return ev.LoadFinished(action.engine_id, action.generation, bookings)

    async def _check_files(self, entry: CatalogEngine) -> None:
        """Read a model again if its files changed while a request waited, or during the load.

        Raises:
            LoadFailed: they changed. Requests that waited are by then moved to the model's new engine.
        """
        changed = await asked(entry.changed_files)
        if changed:
            await self.reread(entry)
            raise LoadFailed(
                f"{changed[0]} changed since it was read.",
                hint="The next request reads it again.",
                file=changed[0],
            )

    def _learn_from_load(self, running: RunningEngine) -> Bookings | None:
        """The bookings that the load's measurement corrects; None when they hold or learning fails."""
        try:
            return self._supervisor.learn(running.entry.engine_id, running, {})
        except RAISED as error:
            self._faults.note("learning", f"learning from the load of {running.entry.label}", error)
            return None

    async def close(self) -> None:
        """End all prepared engines."""
        await self._ahead.close()


async def _nothing(_: CatalogEngine) -> None:
    """The default of `Loads.reread`: does nothing."""


def _failed(
    running: RunningEngine, action: act.StartLoad, raised: BaseException
) -> ev.LoadEndedBadly | None:
    if running.leaving:
        return None
    error = failure_of(running, raised, f"loading {running.entry.label}")
    running.load.end_ns = time.monotonic_ns()
    running.load.error = error.message.partition("\n")[0]
    out_of_memory = isinstance(error, OutOfMemory)
    refused = error.facts.get("device") if out_of_memory else None
    device = refused if isinstance(refused, str) else None
    return ev.LoadEndedBadly(
        action.engine_id, action.generation, error.to_wire(), out_of_memory, device
    )


async def _started(running: RunningEngine) -> LoadReport:
    """Start an engine in a task of its own, so that a start that hangs does not hold back the event."""
    label, loop = running.entry.label, asyncio.get_running_loop()
    if running.preparing is not None:
        await asyncio.wait({running.preparing}, timeout=limits.PREPARE_S)
        if not running.preparing.done():
            raise EngineTimeout(f"{label} was not prepared within {limits.PREPARE_S:g} s.")
        running.preparing.result()
    heard_at = loop.time()

    def progressed(fraction: float) -> None:
        nonlocal heard_at
        heard_at, running.load.fraction = loop.time(), fraction

    running.starting = starting = loop.create_task(
        _start(running.engine, running.placement, progressed)
    )
    try:
        while not starting.done():
            left_s = heard_at + limits.SILENT_START_S - loop.time()
            if left_s <= 0.0:
                raise EngineTimeout(
                    f"{label} reported no progress for {limits.SILENT_START_S:g} s."
                )
            await asyncio.wait({starting}, timeout=left_s)
        return starting.result()
    finally:
        starting.cancel()
        starting.add_done_callback(seen)


async def _start(
    engine: Engine, placement: Placement, progressed: Callable[[float], None]
) -> LoadReport:
    return await engine.start(placement, progressed)
