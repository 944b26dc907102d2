"""The engines that run now, from the start of each to its end: watched, corrected and ended.

Everything here runs on the shell's loop. Work on an engine owes the core an event (`OwedEvent`), which
is delivered also when the work fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

from backends.kinds import LLAMA
from backends.machine.bounded_questions import asked
from budget import actions as act
from budget import events as ev
from budget.books.engines import Bookings
from budget.core import BudgetCore
from budget.errors import KeepwarmError, error_from_wire
from budget.handlers.backoff import with_pause
from budget.snapshot import record_to_wire
from shim.keeper import limits
from shim.keeper.catalog.catalog import Catalog
from shim.keeper.catalog.corrections import Corrections, Seen
from shim.keeper.engines.deaths import Deaths
from shim.keeper.engines.ending import Ender
from shim.keeper.engines.running_engine import Post, RunningEngine, eviction_record, failure_of
from shim.keeper.engines.sleepers import Sleepers
from shim.keeper.kv.carry import KvCarrier
from shim.keeper.shell.fault_counts import RAISED, FaultCounts
from shim.keeper.shell.history import EvictStory, History
from shim.keeper.shell.owed_events import OwedEvent, OwedEvents
from shim.placement.budgeted_devices import bookings_of

LOG = logging.getLogger("keepwarm.keeper")


class Supervisor:
    """Every engine that is loading, resident or leaving, by its id in `now`.

    Args:
        core: read for what engines served; changed by events only.
        catalog: how each engine is run.
        corrections: learns what engines take.
        kv: carries their KV state over from one start to the next.
        history: records every end.
        post: takes an event to the core.
        owed_events: runs the work on engines.
        faults: counts failures of other work.
    """

    def __init__(
        self,
        core: BudgetCore,
        catalog: Catalog,
        corrections: Corrections,
        kv: KvCarrier,
        history: History,
        post: Post,
        owed_events: OwedEvents,
        faults: FaultCounts,
    ) -> None:
        self.now: dict[str, RunningEngine] = {}
        self.catalog = catalog
        self.kv = kv
        self.ender = Ender(faults)
        self.sleepers = Sleepers(core, lambda: self.catalog, self.ender, post, owed_events)
        self._core = core
        self._corrections = corrections
        self._history = history
        self._post = post
        self._owed_events = owed_events
        self._faults = faults
        self.deaths = Deaths()
        self._gone = asyncio.Event()

    # While they run

    def uses_of(self, engine_id: str) -> int:
        """How many leases an engine has had, over all its starts."""
        return self._core.state.residents[engine_id].uses

    def learn(
        self, engine_id: str, running: RunningEngine, measured: Mapping[str, int]
    ) -> Bookings | None:
        """Compare an engine's bytes with its booked placement; the next loads book what was found.

        Returns:
            What the placement books from now on, or None when it was right.
        """
        if running.report is None:
            return None
        entry, index = running.entry, running.option_index
        uses = self.uses_of(engine_id) - running.uses_before
        seen = Seen(running.report.buffers, measured, uses)
        placement = self._corrections.observe(
            entry.label, entry.identity, entry.placements[index], seen
        )
        if placement is entry.placements[index]:
            return None
        running.entry = entry.corrected(index, placement)
        if engine_id in {prepared.engine_id for prepared in self.catalog.prepared.values()}:
            spec = self.catalog.correct(engine_id, index, placement).spec()
            self._post(ev.EngineEstimated(engine_id, spec.options))
        return bookings_of(placement)

    def begin_watch(self, running: RunningEngine) -> None:
        """Watch an engine that is ready. `EngineGone` follows, unless an unload begins first."""
        running.ready = True
        what = f"watching {running.entry.label}"

        def lost(raised: BaseException) -> ev.EngineGone | None:
            return self._dead(running, failure_of(running, raised, what))

        running.watch = self._owed_events.begin(
            OwedEvent(
                "watch", what, lambda: self._watch(running), lost, lambda: self._bury(running)
            )
        )

    async def _watch(self, running: RunningEngine) -> ev.EngineGone | None:
        death = await running.engine.wait_death()
        answer = self._dead(running, running.ending or death.error(running.entry.label))
        if answer is not None:
            LOG.warning("%s; last lines: %s", death.message, " | ".join(death.log_tail[-5:]))
            await self._bury(running)
        return answer

    def _dead(self, running: RunningEngine, error: KeepwarmError) -> ev.EngineGone | None:
        if running.leaving:
            return None
        self._note_death(running, error)
        return ev.EngineGone(running.entry.engine_id, running.generation, error.to_wire())

    async def _bury(self, running: RunningEngine) -> None:
        # Its socket and its folder are removed before the core may give its bytes to another engine.
        await self._end(running)
        try:
            self.kv.died(running.engine)
        except RAISED as error:
            self._faults.note("kv", f"dropping the KV state of {running.entry.label}", error)

    def death_of(
        self, engine_id: str, generation: int, lease: str | None = None
    ) -> dict[str, Any] | None:
        """The error that ended this generation of an engine, as on the wire, for the request of a lease.

        None while it runs.
        """
        wire = self.deaths.error_for(f"{engine_id}/{generation}", lease)
        engine = self._core.state.residents.get(engine_id)
        if wire is None or engine is None or engine.generation != generation:
            return wire
        return with_pause(
            error_from_wire(wire), engine, asyncio.get_running_loop().time()
        ).to_wire()

    def _note_death(self, running: RunningEngine, error: KeepwarmError) -> None:
        engine = self._core.state.residents.get(running.entry.engine_id)
        self.deaths.note(running.load.load_id, error, tuple(engine.leases) if engine else ())

    # Ends

    def end(self, engine_id: str, generation: int, error: KeepwarmError) -> bool:
        """End an engine by the keeper's own decision: it hangs, takes too much, or cannot be reached.

        Its processes are killed, and its KV state is not saved. `EngineGone` (`LoadEndedBadly` while
        it loads) follows with this error. `death_of` returns the same error.

        Returns:
            Whether that generation of the engine was running, and its end had not begun.
        """
        running = self.now.get(engine_id)
        if running is None or running.generation != generation or running.ending is not None:
            return False
        LOG.warning("ending %s: %s", running.entry.label, error)
        running.ending = error
        self._note_death(running, error)
        self.ender.kill(running.engine, running.entry.label)
        # The cancelled task delivers the event at once, without waiting until the process is seen dead.
        task = running.watch if running.ready else running.task
        if task is not None and not running.leaving:
            task.cancel()
        return True

    def unload(self, action: act.Unload) -> None:
        """Unload an engine; `UnloadFinished` follows, unless this raises."""
        running = self.now[action.engine_id]
        done = ev.UnloadFinished(action.engine_id, action.generation)
        record = eviction_record(running, action.reason)
        record.decision = self._decision_on(action.engine_id)
        self._history.evictions.append(record)
        running.leaving = True

        async def work() -> ev.UnloadFinished:
            LOG.info("unloading %s: %s", running.entry.label, action.reason)
            await self._hand_over(running)
            if running.ready and running.ending is None:
                await self._last_look(running)
                await self._leave_kv(running, record)
            up = running.ready and running.ending is None
            if up and await self._falls_asleep(running, action.reason):
                record.end_ns = time.monotonic_ns()
            else:
                await self._finish(running, record)
            return done

        owed = OwedEvent(
            "unload",
            f"unloading {running.entry.label}",
            work,
            lambda _error: done,
            lambda: self._finish(running, record),
        )
        self._owed_events.begin(owed)

    async def _falls_asleep(self, running: RunningEngine, reason: str) -> bool:
        """Whether an engine that leaves stays asleep; it is forgotten then, and its bytes come free."""
        try:
            asleep = await self.sleepers.put(running, reason)
        except Exception as error:
            self._faults.note("sleep", f"putting {running.entry.label} to sleep", error)
            return False
        if asleep:
            self._forget(running)
        return asleep

    def drop(self, engine_id: str, generation: int) -> None:
        """Kill an engine at once, after its work could not be begun; no effect when it does not run."""
        running = self.now.get(engine_id)
        if running is None or running.generation != generation:
            return
        running.leaving = True
        self.ender.kill(running.engine, running.entry.label)
        self._forget(running)
        for task in (running.task, running.watch):
            if task is not None:
                task.cancel()
        # Its socket and its folder are removed, where that is possible.
        self._owed_events.aside(
            "stop", f"stopping {running.entry.label}", lambda: self._end(running)
        )

    async def _hand_over(self, running: RunningEngine) -> None:
        """Cancel the load and the watch of an engine that is unloaded: the unload owes their events now."""
        for task in (running.task, running.watch):
            if task is not None and not task.done():
                task.cancel()
                await self.ender.settle(task, limits.STOP_S, f"unloading {running.entry.label}")

    async def _last_look(self, running: RunningEngine) -> None:
        """Measure an engine whose bytes are known by measurement alone, before it is gone.

        It may have been called, and be unloaded, between two looks of the monitor.
        """
        if running.entry.backend in LLAMA:
            return
        try:
            found = await asked(running.engine.memory)
            known = {device: n for device, n in found.items() if n is not None}
            self.learn(running.entry.engine_id, running, known)
        except Exception as error:
            self._faults.note("learning", f"measuring {running.entry.label}", error)

    def _decision_on(self, engine_id: str) -> dict[str, Any] | None:
        """The last decision by which an engine had to go."""
        for record in reversed(self._core.state.records):
            if engine_id in record.victims or engine_id in record.draining:
                return record_to_wire(record)
        return None

    async def _leave_kv(self, running: RunningEngine, record: EvictStory) -> None:
        """Save the KV state of an idle engine before it ends, where that is worth it."""
        used = self.uses_of(running.entry.engine_id) > running.uses_before
        await self.kv.leaving(running.engine, record, used=used)

    async def _finish(self, running: RunningEngine, record: EvictStory) -> None:
        await self._end(running)
        record.end_ns = time.monotonic_ns()
        if running.load.end_ns == 0:
            running.load.end_ns = record.start_ns
            running.load.error = "abandoned"

    async def give_up(self, running: RunningEngine) -> None:
        """End an engine whose load has failed."""
        running.leaving = True
        if running.watch is not None:
            running.watch.cancel()
        await (self._bury(running) if running.ending else self._end(running))

    async def _end(self, running: RunningEngine, *, grace_s: float = 0.0) -> None:
        """End the process of an engine, and drop it from `now`. Bounded in time, and does not raise."""
        what = f"ending {running.entry.label}"
        for task in (running.preparing, running.starting):
            if task is not None and not await self.ender.settle(task, limits.STOP_S, what):
                task.cancel()
        await self.ender.end(running.engine, running.entry.label, grace_s=grace_s)
        self._forget(running)

    def _forget(self, running: RunningEngine) -> None:
        if self.now.get(running.entry.engine_id) is running:
            del self.now[running.entry.engine_id]
        self._gone.set()
        self._gone = asyncio.Event()

    async def until_gone(self, engine_id: str, timeout_s: float) -> bool:
        """Wait until the process that an engine has now is gone, whether or not the next one has started.

        Returns whether it is gone.
        """
        running = self.now.get(engine_id)
        if running is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.now.get(engine_id) is running:
                    await self._gone.wait()
        return self.now.get(engine_id) is not running

    # The keeper's end

    async def save_conversations(self, in_use: Collection[str], limit_s: float) -> None:
        """Save the KV state of idle engines, as before an eviction; in all no longer than `limit_s`.

        Args:
            in_use: ids of engines that may be generating. Saving their state would wait for that.
            limit_s: saves that have not ended by then are cancelled.
        """
        idle = [running for e, running in self.now.items() if running.ready and e not in in_use]
        records = [eviction_record(running, "the keeper ends") for running in idle]
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        saving = {
            loop.create_task(self._save(running, record))
            for running, record in zip(idle, records, strict=True)
        }
        if saving:
            _, late = await asyncio.wait(saving, timeout=limit_s)
            for task in late:
                task.cancel()
            if late:
                LOG.warning("not all KV state was saved within %g s", limit_s)
                await asyncio.wait(late, timeout=limits.STOP_S)
        if saved_bytes := sum(record.saved_bytes for record in records):
            seconds = time.monotonic() - began_s
            LOG.info("saved %d bytes of KV state in %.3f s before the end", saved_bytes, seconds)

    async def _save(self, running: RunningEngine, record: EvictStory) -> None:
        try:
            await self._leave_kv(running, record)
        except Exception as error:
            self._faults.note("kv", f"saving the KV state of {running.entry.label}", error)

    async def close(self, *, grace_s: float) -> None:
        """End every engine; nothing is posted any more.

        Args:
            grace_s: for each engine to end politely.
        """
        await asyncio.gather(
            self.sleepers.close(),
            *(self._end(running, grace_s=grace_s) for running in list(self.now.values())),
        )

    def kill(self) -> None:
        """Kill every engine at once, because ending them in good order has failed."""
        self.sleepers.kill()
        for running in self.now.values():
            self.ender.kill(running.engine, running.entry.label)
