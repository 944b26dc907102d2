"""The lives of engines: starting, watching and ending them, as the core says.

Everything here runs on the shell's loop. Whatever comes of an engine is posted as an event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Container, Coroutine, Mapping
from pathlib import Path
from typing import Any

from backends.base import Engine
from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.engines import Bookings
from budget.errors import EngineDied, InternalError, KeepwarmError, OutOfMemory
from shim.keeper.catalog import Catalog, CatalogEngine
from shim.keeper.corrections import Corrections, Seen
from shim.keeper.devices import bookings_of
from shim.keeper.history import EvictStory, History, LoadStory
from shim.keeper.kv_carry import KvCarrier
from shim.keeper.life import EngineFactory, Life, evict_story, warm_up_of
from shim.keeper.starting import StartsAhead

LOG = logging.getLogger("keepwarm.keeper")

DEATHS_KEPT = 256
"""Deaths whose account clients can still ask for."""

Post = Callable[[ev.Event], None]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Lives:
    """Every engine that is loading, resident or leaving, by its id in `now`.

    Args:
        core: read for what engines served; changed by events only.
        catalog: how each engine is run.
        runtime: the folder of engines' sockets.
        factory: makes engines.
        corrections: learns what engines take.
        kv: carries their state over.
        history: told of every begin and end.
        post: takes an event to the core.
        spawn: starts a task of the shell's.
    """

    def __init__(
        self,
        core: BudgetCore,
        catalog: Catalog,
        runtime: Path,
        factory: EngineFactory,
        corrections: Corrections,
        kv: KvCarrier,
        history: History,
        post: Post,
        spawn: Spawn,
    ) -> None:
        self.now: dict[str, Life] = {}
        self.catalog = catalog
        self.factory = factory
        self.kv = kv
        self.gone = asyncio.Condition()
        """Notified whenever an engine is gone."""
        self._core = core
        self._runtime = runtime
        self._corrections = corrections
        self._history = history
        self._post = post
        self._spawn = spawn
        self._ahead = StartsAhead(asyncio.get_running_loop())
        self._last_death: dict[str, dict[str, Any]] = {}

    # Begins

    def expect_only(self, promised: Container[str]) -> None:
        """End what was prepared for promises that have fallen."""
        if self._ahead:
            self._ahead.keep_only(promised)

    def prepare(self, action: act.Prepare) -> None:
        """Begin what the start of an engine needs before its bytes are free."""
        entry, index = self.catalog.engines[action.engine_id], action.option_index
        self._ahead.prepare(action.engine_id, entry, index, self._new_engine(entry, index))

    def _new_engine(self, entry: CatalogEngine, option_index: int) -> Engine:
        engine = self.factory(entry, self._runtime)
        self.kv.begin(engine, entry, entry.placements[option_index])
        return engine

    def load(self, action: act.Load) -> None:
        """Begin a life; `LoadFinished` or `LoadFailed` follows."""
        entry = self.catalog.engines[action.engine_id]
        placement = entry.placements[action.option_index]
        prepared = self._ahead.take(action.engine_id, entry, action.option_index)
        story = LoadStory(
            load_id=f"{action.engine_id}/{action.generation}",
            engine=action.engine_id,
            model=entry.label,
            device=placement.main_device,
            bytes=placement.total_bytes,
            reason=action.reason,
            start_ns=time.monotonic_ns(),
            devices=dict(placement.bookings),
        )
        self._history.loads.append(story)
        life = Life(
            prepared.engine if prepared else self._new_engine(entry, action.option_index),
            entry,
            action.generation,
            story,
            action.option_index,
            self._core.desk.residents[action.engine_id].uses,
            prepared.task if prepared else None,
        )
        self.now[action.engine_id] = life
        life.task = self._spawn(self._load(life, action))

    async def _load(self, life: Life, action: act.Load) -> None:
        entry, story = life.entry, life.load
        placement = entry.placements[action.option_index]

        def progressed(fraction: float) -> None:
            story.fraction = fraction

        why = "; ".join(text for text in (action.reason, placement.reason) if text)
        LOG.info("loading %s (%s): %d bytes", entry.label, why, placement.total_bytes)
        try:
            if life.preparing is not None:
                await asyncio.shield(life.preparing)
            life.report = await life.engine.start(placement, progressed)
            await self.kv.started(life.engine, warm_up_of(life), story)
        except KeepwarmError as error:
            await self._load_failed(life, action, life.ending or error)
            return
        except Exception as error:
            LOG.exception("loading %s", entry.label)
            await self._load_failed(
                life, action, InternalError(f"loading {entry.label}: {error!r}")
            )
            return
        story.end_ns = time.monotonic_ns()
        story.storage = life.report.storage
        story.read_bytes = life.report.read_bytes
        story.fraction = 1.0
        life.ready = True
        life.endpoint = life.engine.endpoint.to_wire()
        life.watch = self._spawn(self._watch(life, action.engine_id))
        seconds = (story.end_ns - story.start_ns) / 1e9
        LOG.info("loaded %s in %.3f s (%s)", entry.label, seconds, story.storage)
        bookings = self.learn(action.engine_id, life, {})
        self._post(ev.LoadFinished(action.engine_id, action.generation, bookings))

    def learn(self, engine_id: str, life: Life, measured: Mapping[str, int]) -> Bookings | None:
        """Compare an engine's bytes with its booked placement; the next loads book what was found.

        Returns:
            What the placement books from now on, or None when it was right.
        """
        if life.report is None:
            return None
        entry, index = life.entry, life.option_index
        uses = self._core.desk.residents[engine_id].uses - life.uses_before
        seen = Seen(life.report.buffers, measured, uses)
        placement = self._corrections.observe(
            entry.label, entry.identity, entry.placements[index], seen
        )
        if placement is entry.placements[index]:
            return None
        life.entry = entry.corrected(index, placement)
        if engine_id in {prepared.engine_id for prepared in self.catalog.prepared.values()}:
            spec = self.catalog.correct(engine_id, index, placement).spec()
            self._post(ev.EngineEstimated(engine_id, spec.options))
        return bookings_of(placement)

    async def _load_failed(self, life: Life, action: act.Load, error: KeepwarmError) -> None:
        life.load.end_ns = time.monotonic_ns()
        life.load.error = error.message.partition("\n")[0]
        LOG.warning("loading %s failed: %s", life.entry.label, error)
        await self._stop(life, grace_s=0.0)
        self._forget(action.engine_id, life)
        out_of_memory = isinstance(error, OutOfMemory)
        refused = error.facts.get("device") if out_of_memory else None
        device = refused if isinstance(refused, str) else None
        self._post(
            ev.LoadFailed(
                action.engine_id, action.generation, error.to_wire(), out_of_memory, device
            )
        )

    async def _watch(self, life: Life, engine_id: str) -> None:
        death = await life.engine.wait_death()
        error = life.ending or EngineDied(
            f"{death.message}.",
            hint="The next request starts it again; its last lines are in `log_tail`.",
            model=life.entry.label,
            exit_code=death.exit_code,
            log_tail=list(death.log_tail),
        )
        LOG.warning("%s; last lines: %s", death.message, " | ".join(death.log_tail[-5:]))
        self._died_of(life, error)
        # What is left of it (its socket, its folder) goes before the bytes are anybody's again.
        await self._stop(life, grace_s=0.0)
        self._forget(engine_id, life)
        self.kv.died(life.engine)
        self._post(ev.EngineDied(engine_id, life.generation, error.to_wire()))
        await self._announce()

    def death_of(self, engine_id: str, generation: int) -> dict[str, Any] | None:
        """How a past life of an engine ended, as an error on the wire; None while it lives."""
        return self._last_death.get(f"{engine_id}/{generation}")

    # Ends

    def end(self, engine_id: str, generation: int, error: KeepwarmError) -> bool:
        """End a life by the keeper's own decision: it hangs, takes too much, or cannot be reached.

        Its processes are killed, and nothing that it holds is saved. `EngineDied` (`LoadFailed` while
        it loads) follows with this error, which is also what `death_of` tells its callers.

        Returns:
            Whether that life was there, and not about to end already.
        """
        life = self.now.get(engine_id)
        if life is None or life.generation != generation or life.ending is not None:
            return False
        LOG.warning("ending %s: %s", life.entry.label, error)
        life.ending = error
        self._died_of(life, error)
        life.engine.kill()
        return True

    def _died_of(self, life: Life, error: KeepwarmError) -> None:
        self._last_death[life.load.load_id] = error.to_wire()
        if len(self._last_death) > DEATHS_KEPT:
            del self._last_death[next(iter(self._last_death))]

    async def unload(self, action: act.Unload) -> None:
        """End a life; `UnloadFinished` follows."""
        life = self.now[action.engine_id]
        story = evict_story(life, action.reason)
        self._history.evictions.append(story)
        LOG.info("unloading %s: %s", life.entry.label, action.reason)
        for task in (life.task if action.abandon else None, life.watch):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if life.ready:
            await self._leave_kv(life, story)
        # Nobody leases it, so there is nothing to be polite about; killing is 100 ms faster.
        await self._stop(life, grace_s=0.0)
        self._forget(action.engine_id, life)
        story.end_ns = time.monotonic_ns()
        if life.load.end_ns == 0:
            life.load.end_ns = story.start_ns
            life.load.error = "abandoned"
        self._post(ev.UnloadFinished(action.engine_id, action.generation))
        await self._announce()

    async def _leave_kv(self, life: Life, story: EvictStory) -> None:
        """Save what an idle engine holds before it ends, where that is worth it."""
        uses = self._core.desk.residents[life.entry.engine_id].uses
        await self.kv.leaving(life.engine, story, used=uses > life.uses_before)

    def _forget(self, engine_id: str, life: Life) -> None:
        if self.now.get(engine_id) is life:
            del self.now[engine_id]

    async def _stop(self, life: Life, *, grace_s: float) -> None:
        if life.preparing is not None:
            await asyncio.gather(life.preparing, return_exceptions=True)
        try:
            await asyncio.shield(life.engine.stop(grace_s=grace_s))
        except Exception:
            LOG.exception("stopping %s", life.entry.label)

    async def _announce(self) -> None:
        async with self.gone:
            self.gone.notify_all()

    async def save_conversations(self, in_use: Collection[str], limit_s: float) -> None:
        """Save what idle engines hold, as before an eviction; in all no longer than `limit_s`.

        Args:
            in_use: ids of engines that may be generating: saving them would wait for that.
            limit_s: what is not saved by then is not.
        """
        idle = {e: life for e, life in self.now.items() if life.ready and e not in in_use}
        stories = [evict_story(life, "the keeper ends") for life in idle.values()]
        saving = [
            self._leave_kv(life, story) for life, story in zip(idle.values(), stories, strict=True)
        ]
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*saving)
        except TimeoutError:
            LOG.warning("not all KV state was saved within %g s", limit_s)
        if saved_bytes := sum(story.saved_bytes for story in stories):
            seconds = time.monotonic() - began_s
            LOG.info("saved %d bytes of KV state in %.3f s before the end", saved_bytes, seconds)

    async def close(self, *, grace_s: float, keep_kv: bool) -> None:
        """End every engine; nothing is posted any more.

        Args:
            grace_s: for each engine to end politely.
            keep_kv: leave the conversations that are saved to the next keeper.
        """
        await self._ahead.close()
        await asyncio.gather(*(self._stop(life, grace_s=grace_s) for life in self.now.values()))
        self.now.clear()
        await self.kv.close(keep=keep_kv)
