"""The shell around the core: a single writer that feeds it events and carries its actions out.

Everything here runs on one asyncio loop. `post` is the only way into the core; an action never
calls back into it directly, it starts a task whose outcome is the next event.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from backends.base import Engine
from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.engines import Bookings
from budget.errors import EngineDied, InternalError, KeepwarmError, OutOfMemory, error_from_wire
from shim.keeper.catalog import Catalog, CatalogEngine
from shim.keeper.corrections import Corrections, Seen
from shim.keeper.devices import bookings_of
from shim.keeper.history import EvictStory, History, LoadStory, StageStory
from shim.keeper.kv_carry import KvCarrier
from shim.keeper.life import (
    Done,
    EngineFactory,
    Life,
    RevokeListener,
    YieldListener,
    evict_story,
    warm_up_of,
)
from shim.keeper.sayings import say
from shim.keeper.staging import Stager
from shim.keeper.starting import StartsAhead

LOG = logging.getLogger("keepwarm.keeper")

DEATHS_KEPT = 256
"""Deaths whose account clients can still ask for."""


class Shell:
    """Carries out what the core decides."""

    def __init__(
        self,
        core: BudgetCore,
        catalog: Catalog,
        runtime: Path,
        factory: EngineFactory,
        corrections: Corrections,
        kv: KvCarrier,
        stage_bytes_per_s: float | None = None,
    ) -> None:
        self.core = core
        self.catalog = catalog
        self.history = History()
        self.lives: dict[str, Life] = {}
        self.on_revoke: RevokeListener = lambda _client, _error: None
        self.on_yield: YieldListener = lambda _client, _lease: None
        self._runtime = runtime
        self._corrections = corrections
        self.kv = kv
        self.stager = Stager(stage_bytes_per_s, self.post)
        self.factory = factory
        self._done: dict[str, Done] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ahead = StartsAhead(self._loop)
        self._last_death: dict[str, dict[str, Any]] = {}
        self.gone = asyncio.Condition()

    # Events in

    def post(self, event: ev.Event) -> None:
        """One event into the core, and its actions on their way.

        Raises:
            KeepwarmError: the event asks for what cannot be; nothing changed.
        """
        actions = self.core.handle(event, time.monotonic())
        changed = False
        for action in actions:
            changed |= self._carry_out(action)
        if self._ahead:
            self._ahead.keep_only(self.core.desk.claims)
        if changed or not isinstance(event, ev.RequestArrived | ev.LeaseEnded | ev.TimerDue):
            self._sample()

    def ask(self, request: ev.RequestArrived, done: Done) -> None:
        """Post a request; `done` is called once, now or later, with its grant or its error."""
        self._done[request.request_id] = done
        self.post(request)

    def ask_again(self, event: ev.LeaseYielded, done: Done) -> None:
        """A lease is given back; `done` is called once, when it is granted again or cannot be."""
        self._done[event.request_id] = done
        try:
            self.post(event)
        except KeepwarmError:
            self._done.pop(event.request_id, None)
            raise

    # Actions out

    def _carry_out(self, action: act.Action) -> bool:
        """Start one action; returns whether the books may have changed."""
        match action:
            case act.Grant():
                self._done.pop(action.request_id)(action)
            case act.Deny():
                self._done.pop(action.request_id)(_error(action.error))
            case act.Revoke():
                self.on_revoke(action.request_id, _error(action.error))
            case act.AskYield():
                LOG.info("lease %s is asked to yield for %s", action.request_id, action.wanted)
                self.on_yield(action.client_id, action.request_id)
            case act.SetTimer():
                self._set_timer(action.at)
            case act.Record() | act.Alert() | act.LowMemory():
                say(action)
            case act.Stage():
                self._start_staging(action.engine_id)
            case act.StopStaging():
                self.stager.stop(action.engine_id)
            case act.Prepare():
                self._prepare(action)
            case act.Load():
                self._start_load(action)
                return True
            case act.Unload():
                self._spawn(self._unload(action))
                return True
        return False

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # The loop's clock is the one that `post` reads; a timer that rings a hair early would find
        # nothing due, so it is set a millisecond late.
        self._timer = self._loop.call_at(at + 0.001, self.post, ev.TimerDue())

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.critical("a keeper task failed", exc_info=error)

    # Loading

    def _start_staging(self, engine_id: str) -> None:
        entry = self.catalog.engines[engine_id]
        story = StageStory(engine_id, entry.label, time.monotonic_ns())
        self.history.stagings.append(story)
        files = [Path(row[0]) for row in entry.stamp]
        self._spawn(self.stager.stage(engine_id, files, story))

    def _prepare(self, action: act.Prepare) -> None:
        entry, index = self.catalog.engines[action.engine_id], action.option_index
        self._ahead.prepare(action.engine_id, entry, index, self._new_engine(entry, index))

    def _new_engine(self, entry: CatalogEngine, option_index: int) -> Engine:
        engine = self.factory(entry, self._runtime)
        self.kv.begin(engine, entry, entry.placements[option_index])
        return engine

    def _start_load(self, action: act.Load) -> None:
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
        self.history.loads.append(story)
        life = Life(
            prepared.engine if prepared else self._new_engine(entry, action.option_index),
            entry,
            action.generation,
            story,
            action.option_index,
            self.core.desk.residents[action.engine_id].uses,
            prepared.task if prepared else None,
        )
        self.lives[action.engine_id] = life
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
            await self._load_failed(life, action, error)
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
        self.post(ev.LoadFinished(action.engine_id, action.generation, bookings))

    def learn(self, engine_id: str, life: Life, measured: Mapping[str, int]) -> Bookings | None:
        """Compare an engine's bytes with its booked placement; the next loads book what was found.

        Returns:
            What the placement books from now on, or None when it was right.
        """
        if life.report is None:
            return None
        entry, index = life.entry, life.option_index
        uses = self.core.desk.residents[engine_id].uses - life.uses_before
        seen = Seen(life.report.buffers, measured, uses)
        placement = self._corrections.observe(
            entry.label, entry.identity, entry.placements[index], seen
        )
        if placement is entry.placements[index]:
            return None
        life.entry = entry.corrected(index, placement)
        if engine_id in {prepared.engine_id for prepared in self.catalog.prepared.values()}:
            spec = self.catalog.correct(engine_id, index, placement).spec()
            self.post(ev.EngineEstimated(engine_id, spec.options))
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
        self.post(
            ev.LoadFailed(
                action.engine_id, action.generation, error.to_wire(), out_of_memory, device
            )
        )

    async def _watch(self, life: Life, engine_id: str) -> None:
        death = await life.engine.wait_death()
        error = EngineDied(
            f"{death.message}.",
            hint="The next request starts it again; its last lines are in `log_tail`.",
            model=life.entry.label,
            exit_code=death.exit_code,
            log_tail=list(death.log_tail),
        )
        LOG.warning("%s; last lines: %s", death.message, " | ".join(death.log_tail[-5:]))
        # What is left of it (its socket, its folder) goes before the bytes are anybody's again.
        await self._stop(life, grace_s=0.0)
        self._forget(engine_id, life)
        self._last_death[life.load.load_id] = error.to_wire()
        if len(self._last_death) > DEATHS_KEPT:
            del self._last_death[next(iter(self._last_death))]
        self.kv.died(life.engine)
        self.post(ev.EngineDied(engine_id, life.generation, error.to_wire()))
        await self._announce()

    def death_of(self, engine_id: str, generation: int) -> dict[str, Any] | None:
        """How a past life of an engine ended, as an error on the wire; None while it lives."""
        return self._last_death.get(f"{engine_id}/{generation}")

    # Unloading

    async def _unload(self, action: act.Unload) -> None:
        life = self.lives[action.engine_id]
        story = evict_story(life, action.reason)
        self.history.evictions.append(story)
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
        self.post(ev.UnloadFinished(action.engine_id, action.generation))
        await self._announce()

    async def _leave_kv(self, life: Life, story: EvictStory) -> None:
        """Save what an idle engine holds before it ends, where that is worth it."""
        uses = self.core.desk.residents[life.entry.engine_id].uses
        await self.kv.leaving(life.engine, story, used=uses > life.uses_before)

    def _forget(self, engine_id: str, life: Life) -> None:
        if self.lives.get(engine_id) is life:
            del self.lives[engine_id]

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
        idle = {e: life for e, life in self.lives.items() if life.ready and e not in in_use}
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
        """End every engine; the core is not told, for it ends too.

        Args:
            grace_s: for each engine to end politely.
            keep_kv: leave the conversations that are saved to the next keeper.
        """
        if self._timer is not None:
            self._timer.cancel()
        mine = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await self._ahead.close()
        await asyncio.gather(*(self._stop(life, grace_s=grace_s) for life in self.lives.values()))
        self.lives.clear()
        await self.kv.close(keep=keep_kv)

    # The books over time

    def _sample(self) -> None:
        ns = time.monotonic_ns()
        residents = self.core.desk.residents
        for view in self.core.ledgers():
            if view.device not in self.catalog.limits:
                continue  # an RPC server's connection: no bytes
            by_model = {
                self.catalog.label(engine.engine_id): amount
                for engine in residents.on_device(view.device)
                for device, amount in engine.bookings
                if device == view.device
            }
            self.history.sample(ns, view, by_model)


def _error(wire: Any) -> KeepwarmError:
    return error_from_wire(dict(wire))
