"""The lives of engines, from the moment each begins: watched, judged and ended.

Everything here runs on the shell's loop. Whatever comes of an engine is an event, and whatever is done
with an engine is a duty: its event comes, also where the work fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any, Final

from budget import actions as act
from budget import events as ev
from budget.core import BudgetCore
from budget.engines import Bookings
from budget.errors import KeepwarmError
from shim.keeper import limits
from shim.keeper.catalog import Catalog
from shim.keeper.corrections import Corrections, Seen
from shim.keeper.devices import bookings_of
from shim.keeper.duties import Duties, Duty
from shim.keeper.ending import Ender
from shim.keeper.faults import RAISED, Faults
from shim.keeper.history import EvictStory, History
from shim.keeper.kv_carry import KvCarrier
from shim.keeper.life import Life, Post, evict_story, told

LOG = logging.getLogger("keepwarm.keeper")

DEATHS_KEPT: Final = 256
"""Deaths whose account clients can still ask for."""


class Lives:
    """Every engine that is loading, resident or leaving, by its id in `now`.

    Args:
        core: read for what engines served; changed by events only.
        catalog: how each engine is run.
        corrections: learns what engines take.
        kv: carries their state over.
        history: told of every end.
        post: takes an event to the core.
        duties: runs what is done with engines.
        faults: told of what fails beside the duties.
    """

    def __init__(
        self,
        core: BudgetCore,
        catalog: Catalog,
        corrections: Corrections,
        kv: KvCarrier,
        history: History,
        post: Post,
        duties: Duties,
        faults: Faults,
    ) -> None:
        self.now: dict[str, Life] = {}
        self.catalog = catalog
        self.kv = kv
        self.ender = Ender(faults)
        self._core = core
        self._corrections = corrections
        self._history = history
        self._post = post
        self._duties = duties
        self._faults = faults
        self._last_death: dict[str, dict[str, Any]] = {}
        self._gone = asyncio.Event()

    # While they live

    def uses_of(self, engine_id: str) -> int:
        """Leases that an engine has had in all its lives."""
        return self._core.desk.residents[engine_id].uses

    def learn(self, engine_id: str, life: Life, measured: Mapping[str, int]) -> Bookings | None:
        """Compare an engine's bytes with its booked placement; the next loads book what was found.

        Returns:
            What the placement books from now on, or None when it was right.
        """
        if life.report is None:
            return None
        entry, index = life.entry, life.option_index
        uses = self.uses_of(engine_id) - life.uses_before
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

    def begin_watch(self, life: Life) -> None:
        """A life is ready; `EngineDied` follows, unless its end is asked for first."""
        life.ready = True
        what = f"watching {life.entry.label}"

        def lost(raised: BaseException) -> ev.EngineDied | None:
            return self._dead(life, told(life, raised, what))

        life.watch = self._duties.begin(
            Duty("watch", what, lambda: self._watch(life), lost, lambda: self._bury(life))
        )

    async def _watch(self, life: Life) -> ev.EngineDied | None:
        death = await life.engine.wait_death()
        answer = self._dead(life, life.ending or death.error(life.entry.label))
        if answer is not None:
            LOG.warning("%s; last lines: %s", death.message, " | ".join(death.log_tail[-5:]))
            await self._bury(life)
        return answer

    def _dead(self, life: Life, error: KeepwarmError) -> ev.EngineDied | None:
        if life.leaving:
            return None
        self._tell_death(life, error)
        return ev.EngineDied(life.entry.engine_id, life.generation, error.to_wire())

    async def _bury(self, life: Life) -> None:
        # What is left of it (its socket, its folder) goes before its bytes are anybody's again.
        await self._end(life)
        try:
            self.kv.died(life.engine)
        except RAISED as error:
            self._faults.note("kv", f"dropping the KV state of {life.entry.label}", error)

    def death_of(self, engine_id: str, generation: int) -> dict[str, Any] | None:
        """How a past life of an engine ended, as an error on the wire; None while it lives."""
        return self._last_death.get(f"{engine_id}/{generation}")

    def _tell_death(self, life: Life, error: KeepwarmError) -> None:
        self._last_death[life.load.load_id] = error.to_wire()
        if len(self._last_death) > DEATHS_KEPT:
            del self._last_death[next(iter(self._last_death))]

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
        self._tell_death(life, error)
        self.ender.kill(life.engine, life.entry.label)
        # Its duty answers for it, and does not wait for the process to be seen dead.
        task = life.watch if life.ready else life.task
        if task is not None and not life.leaving:
            task.cancel()
        return True

    def unload(self, action: act.Unload) -> None:
        """End a life; `UnloadFinished` follows, unless this raises."""
        life = self.now[action.engine_id]
        done = ev.UnloadFinished(action.engine_id, action.generation)
        story = evict_story(life, action.reason)
        self._history.evictions.append(story)
        life.leaving = True

        async def work() -> ev.UnloadFinished:
            LOG.info("unloading %s: %s", life.entry.label, action.reason)
            await self._hand_over(life)
            if life.ready and life.ending is None:
                await self._leave_kv(life, story)
            await self._finish(life, story)
            return done

        duty = Duty(
            "unload",
            f"unloading {life.entry.label}",
            work,
            lambda _error: done,
            lambda: self._finish(life, story),
        )
        self._duties.begin(duty)

    def drop(self, engine_id: str, generation: int) -> None:
        """End a life at once, where no duty can do it in good order; none that is there is no error."""
        life = self.now.get(engine_id)
        if life is None or life.generation != generation:
            return
        life.leaving = True
        self.ender.kill(life.engine, life.entry.label)
        self._forget(life)
        for task in (life.task, life.watch):
            if task is not None:
                task.cancel()
        # What is left of it, where that can be cleared away.
        self._duties.aside("stop", f"stopping {life.entry.label}", lambda: self._end(life))

    async def _hand_over(self, life: Life) -> None:
        """End the duties of a life that leaves; it has taken over what they owe."""
        for task in (life.task, life.watch):
            if task is not None and not task.done():
                task.cancel()
                await self.ender.settle(task, limits.STOP_S, f"unloading {life.entry.label}")

    async def _leave_kv(self, life: Life, story: EvictStory) -> None:
        """Save what an idle engine holds before it ends, where that is worth it."""
        used = self.uses_of(life.entry.engine_id) > life.uses_before
        await self.kv.leaving(life.engine, story, used=used)

    async def _finish(self, life: Life, story: EvictStory) -> None:
        await self._end(life)
        story.end_ns = time.monotonic_ns()
        if life.load.end_ns == 0:
            life.load.end_ns = story.start_ns
            life.load.error = "abandoned"

    async def give_up(self, life: Life) -> None:
        """End a life whose load has failed."""
        life.leaving = True
        if life.watch is not None:
            life.watch.cancel()
        await (self._bury(life) if life.ending else self._end(life))

    async def _end(self, life: Life, *, grace_s: float = 0.0) -> None:
        """End the process of a life, and forget it. Neither raises nor takes longer than its bounds."""
        what = f"ending {life.entry.label}"
        for task in (life.preparing, life.starting):
            if task is not None and not await self.ender.settle(task, limits.STOP_S, what):
                task.cancel()
        await self.ender.end(life.engine, life.entry.label, grace_s=grace_s)
        self._forget(life)

    def _forget(self, life: Life) -> None:
        if self.now.get(life.entry.engine_id) is life:
            del self.now[life.entry.engine_id]
        self._gone.set()
        self._gone = asyncio.Event()

    async def until_gone(self, engine_id: str, timeout_s: float) -> bool:
        """Wait until an engine's life of now is over, whether or not its next one has begun.

        Returns whether it is.
        """
        life = self.now.get(engine_id)
        if life is None:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.now.get(engine_id) is life:
                    await self._gone.wait()
        return self.now.get(engine_id) is not life

    # The keeper's end

    async def save_conversations(self, in_use: Collection[str], limit_s: float) -> None:
        """Save what idle engines hold, as before an eviction; in all no longer than `limit_s`.

        Args:
            in_use: ids of engines that may be generating: saving them would wait for that.
            limit_s: what is not saved by then is not.
        """
        idle = [life for e, life in self.now.items() if life.ready and e not in in_use]
        stories = [evict_story(life, "the keeper ends") for life in idle]
        began_s = time.monotonic()
        loop = asyncio.get_running_loop()
        saving = {
            loop.create_task(self._save(life, story))
            for life, story in zip(idle, stories, strict=True)
        }
        if saving:
            _, late = await asyncio.wait(saving, timeout=limit_s)
            for task in late:
                task.cancel()
            if late:
                LOG.warning("not all KV state was saved within %g s", limit_s)
                await asyncio.wait(late, timeout=limits.STOP_S)
        if saved_bytes := sum(story.saved_bytes for story in stories):
            seconds = time.monotonic() - began_s
            LOG.info("saved %d bytes of KV state in %.3f s before the end", saved_bytes, seconds)

    async def _save(self, life: Life, story: EvictStory) -> None:
        try:
            await self._leave_kv(life, story)
        except Exception as error:
            self._faults.note("kv", f"saving the KV state of {life.entry.label}", error)

    async def close(self, *, grace_s: float) -> None:
        """End every engine; nothing is posted any more.

        Args:
            grace_s: for each engine to end politely.
        """
        await asyncio.gather(
            *(self._end(life, grace_s=grace_s) for life in list(self.now.values()))
        )

    def kill(self) -> None:
        """End every engine at once: what ends them in good order has failed."""
        for life in self.now.values():
            self.ender.kill(life.engine, life.entry.label)
