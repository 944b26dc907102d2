"""KV state that is carried over a swap: saved before an engine's end, restored after its next start.

Nothing here may fail a request or hold an eviction up for long. A failure costs a prompt evaluation and
a line in the log, and the file concerned is deleted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from weakref import WeakKeyDictionary

from backends.base import Engine
from budget.eviction.kv_store import SlotState, choose_restores, choose_saves
from budget.footprint import Placement
from shim.keeper import limits
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.engines.warm_prompt import Warmed
from shim.keeper.kv.engine_folder import WARM, EngineFolder, read_tokens, slot_file
from shim.keeper.kv.keeping import KvKeeping, kv_key
from shim.keeper.kv.saved_files import KvFiles
from shim.keeper.shell.fault_counts import FaultCounts
from shim.keeper.shell.history import EvictStory, LoadStory

LOG = logging.getLogger("keepwarm.keeper")

MAX_TOKENS: Final = 1 << 31
"""Counts above this in a client's report are ignored as wrong."""

WarmUp = Callable[[], Awaitable[Warmed]]


@dataclass(frozen=True, slots=True)
class Parked:
    """The saved state of an interrupted request: a file in an engine folder, and all tokens so far."""

    engine_folder: EngineFolder
    name: str
    tokens: tuple[int, ...]


@dataclass(slots=True)
class Carry:
    """The state kept about one running engine's KV state, from its start to its end."""

    engine_folder: EngineFolder
    slots: int
    bytes_per_token: float
    lock: asyncio.Lock
    restored: dict[int, int] = field(default_factory=dict)
    leases_seen: int = 0
    used_tokens: int = 0
    parked_tokens: int = -1


class KvCarrier(KvKeeping):
    """Saves and restores KV state as `budget.eviction.kv_store` decides. One per keeper."""

    def __init__(
        self, files: KvFiles | None, build: str, faults: FaultCounts | None = None
    ) -> None:
        super().__init__(files, build, faults)
        self._carries: WeakKeyDictionary[Engine, Carry] = WeakKeyDictionary()

    # From start to end

    def begin(self, engine: Engine, entry: CatalogEngine, placement: Placement) -> None:
        """Before an engine starts: give it its engine folder."""
        if self._files is None or not entry.carries_kv:
            return
        key = kv_key(entry, placement, self._build)
        try:
            engine_folder = self._files.engine_folder(
                key,
                {"stamp": entry.stamp, "engine": entry.engine_id, "models": list(entry.names)},
            )
            engine.keep_kv_in(engine_folder.folder)
        except OSError as error:
            LOG.warning("keeping the KV state of %s failed: %s", entry.label, error)
            return
        except Exception as error:
            self._faults.note("kv", f"keeping the KV state of {entry.label}", error)
            return
        held = sum(part.kv_bytes for part in placement.footprints.values())
        args = placement.args
        per_token = held / args.n_ctx if args.n_ctx else 0.0
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._carries[engine] = Carry(engine_folder, args.slots, per_token, lock)

    async def started(self, engine: Engine, warm_up: WarmUp | None, record: LoadStory) -> None:
        """After an engine's start: restore its conversations and its warm prompt.

        Raises:
            LoadFailed: the engine refused its warm prompt.
        """
        carry = self._carries.get(engine)
        if carry is None or not engine.capabilities.save_restore:
            self._carries.pop(engine, None)
            if warm_up is not None:
                await warm_up()
            return
        what = f"giving {record.model} back its KV state"
        if not await self._tried(carry.lock.acquire(), what, limits.KV_LOCK_S):
            del self._carries[engine]
            if warm_up is not None:
                await warm_up()
            return
        try:
            sound = await self._tried(_check(carry.engine_folder), what, limits.RESTORE_S)
            if warm_up is not None and WARM not in carry.engine_folder.states:
                await self._evaluate_warm(engine, carry, warm_up)
            if sound:
                restoring = self._restore(engine, carry, record, warm=warm_up is not None)
                await self._tried(restoring, what, limits.RESTORE_S)
        finally:
            carry.lock.release()

    async def _evaluate_warm(self, engine: Engine, carry: Carry, warm_up: WarmUp) -> None:
        """Evaluate the warm prompt for the first time, and save it for good."""
        warmed = await warm_up()
        engine_folder = carry.engine_folder
        engine_folder.figures = replace(
            engine_folder.figures,
            evaluation=engine_folder.figures.evaluation.seen(warmed.tokens, warmed.seconds),
        )
        size = int(warmed.tokens * carry.bytes_per_token)
        if await self._save(engine, carry, SlotState(0, warmed.tokens), WARM, size):
            await self._tried(
                asyncio.to_thread(engine_folder.seal), f"sealing {WARM} of {engine_folder.key}"
            )

    async def _restore(
        self, engine: Engine, carry: Carry, record: LoadStory, *, warm: bool
    ) -> None:
        states = carry.engine_folder.states
        saved = {
            slot: states[slot_file(slot)].tokens
            for slot in range(carry.slots)
            if slot_file(slot) in states
        }
        kept = states.get(WARM) if warm else None
        begin_ns = time.monotonic_ns()
        for slot, source in choose_restores(
            carry.slots, saved, kept.tokens if kept else None
        ).items():
            name = WARM if source is None else slot_file(slot)
            tokens = await self._restore_one(engine, carry, slot, name)
            record.restored_tokens += tokens
            if source is not None and tokens:
                carry.restored[slot] = tokens
        if record.restored_tokens:
            record.restore_s = (time.monotonic_ns() - begin_ns) / 1e9

    async def _restore_one(self, engine: Engine, carry: Carry, slot: int, name: str) -> int:
        engine_folder, begin_ns = carry.engine_folder, time.monotonic_ns()
        tokens = await self._tried(
            engine.restore_kv(slot, name), f"restoring {name} of {engine_folder.key}"
        )
        if tokens is None:
            engine_folder.drop(name)
            return 0
        seconds = (time.monotonic_ns() - begin_ns) / 1e9
        if name in engine_folder.states:
            engine_folder.states[name].used_at = time.time()
        engine_folder.figures = replace(
            engine_folder.figures, restore=engine_folder.figures.restore.seen(tokens, seconds)
        )
        return tokens

    def served(self, engine: Engine, spent: Mapping[str, Any]) -> None:
        """A request ended: learn from what its prompt cost, and from how much of it was cached."""
        carry = self._carries.get(engine)
        try:
            tokens, cached = int(spent["prompt_n"]), int(spent["cache_n"])
            seconds = float(spent["prompt_ms"]) / 1e3
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        sane = 0 <= tokens <= MAX_TOKENS and 0 <= cached <= MAX_TOKENS and 0.0 <= seconds < math.inf
        if carry is None or not sane:
            return
        figures = carry.engine_folder.figures
        carry.engine_folder.figures = replace(
            figures, evaluation=figures.evaluation.seen(tokens, seconds)
        )
        if carry.leases_seen < len(carry.restored):
            carry.leases_seen += 1
            carry.used_tokens += cached

    async def leaving(self, engine: Engine, record: EvictStory, *, used: bool) -> None:
        """Before an idle engine's end: save what is worth it. An unused engine's state is saved already."""
        carry = self._carries.pop(engine, None)
        if carry is None or not used or self._files is None:
            return
        if carry.engine_folder.key not in self._files:
            return  # its model is no longer configured
        begin_ns, what = time.monotonic_ns(), f"saving KV state of {record.model}"
        if not await self._tried(carry.lock.acquire(), what, limits.KV_LOCK_S):
            return
        try:
            engine_folder = carry.engine_folder
            restored = sum(carry.restored.values())
            engine_folder.figures = engine_folder.figures.reused(restored, carry.used_tokens)
            saved = await self._tried(self._save_slots(engine, carry), what, limits.SAVE_S)
            if saved is None:
                engine_folder.sweep()
            record.saved_bytes = saved or 0
        finally:
            carry.lock.release()
        record.save_s = (time.monotonic_ns() - begin_ns) / 1e9
        self._seal(carry.engine_folder, carry.lock)

    def died(self, engine: Engine) -> None:
        """An engine crashed: drop its saved conversations, because restoring them may be the cause."""
        carry = self._carries.pop(engine, None)
        if carry is not None:
            for slot in range(carry.slots):
                carry.engine_folder.drop(slot_file(slot))

    async def _save_slots(self, engine: Engine, carry: Carry) -> int:
        """Save the conversations that are worth it in place of the older saves. Returns the saved bytes."""
        if self._files is None:
            return 0
        engine_folder = carry.engine_folder
        held = await self._tried(engine.kv_tokens(), f"looking at the slots of {engine_folder.key}")
        warm = engine_folder.states.get(WARM)
        there_already = {len(warm.tokens) if warm else -1, carry.parked_tokens}
        slots = [SlotState(s, n) for s, n in (held or {}).items() if n not in there_already]
        for state in slots:
            engine_folder.drop(slot_file(state.slot))
        limit = self._files.limit_bytes
        chosen = choose_saves(slots, engine_folder.figures, carry.bytes_per_token, limit)
        if len(chosen) < len(slots):
            engine_folder.figures = engine_folder.figures.skipped()
        total = 0
        for state in chosen:
            size = int(state.tokens * carry.bytes_per_token)
            total += await self._save(engine, carry, state, slot_file(state.slot), size)
        return total

    async def _save(
        self, engine: Engine, carry: Carry, state: SlotState, name: str, expected_bytes: int
    ) -> int:
        """Save one slot within the budget; returns the bytes, 0 when it was not saved."""
        engine_folder = carry.engine_folder
        if self._files is None or expected_bytes > self._files.limit_bytes:
            return 0
        self._files.make_room(expected_bytes)
        begin_ns = time.monotonic_ns()
        saving = engine.save_kv(state.slot, name)
        written = await self._tried(saving, f"saving slot {state.slot} of {engine_folder.key}")
        kept = engine_folder.add(name) if written else None
        if kept is None:
            engine_folder.drop(name)
            return 0
        seconds = (time.monotonic_ns() - begin_ns) / 1e9
        engine_folder.figures = replace(
            engine_folder.figures, save=engine_folder.figures.save.seen(state.tokens, seconds)
        )
        self._files.make_room()
        return kept.size_bytes

    # Interrupted requests

    async def park(self, engine: Engine, lease: str) -> Parked | None:
        """Save the state of an engine's one slot for the request that is interrupted in it.

        None where the slot is not known or cannot be saved: the request goes on from its text.
        """
        carry = self._carries.get(engine)
        if carry is None or carry.slots != 1:
            return None
        name = f"yield-{lease}.kv"
        parking = self._park(engine, carry, name)
        parked = None
        try:
            parked = await self._tried(parking, f"saving {name}", limits.SAVE_S)
        finally:
            if parked is None:
                carry.engine_folder.drop(name)
        if parked is not None:
            self._seal(carry.engine_folder, carry.lock)
        return parked

    async def _park(self, engine: Engine, carry: Carry, name: str) -> Parked | None:
        async with carry.lock:
            looking = engine.kv_tokens()
            held = await self._tried(looking, f"looking at the slot of {carry.engine_folder.key}")
            tokens = (held or {}).get(0, 0)
            size = int(tokens * carry.bytes_per_token)
            if not await self._save(engine, carry, SlotState(0, tokens), name, size):
                return None
            found = await asyncio.to_thread(read_tokens, carry.engine_folder.folder / name)
        if not found:
            return None
        carry.parked_tokens = tokens
        return Parked(carry.engine_folder, name, found)

    async def unpark(self, engine: Engine, parked: Parked) -> None:
        """Restore what `park` saved, when the request has its lease again."""
        carry = self._carries.get(engine)
        if carry is not None and carry.engine_folder is parked.engine_folder:
            unparking = self._unpark(engine, carry, parked.name)
            await self._tried(unparking, f"restoring {parked.name}", limits.SAVE_S)

    async def _unpark(self, engine: Engine, carry: Carry, name: str) -> None:
        async with carry.lock:
            carry.parked_tokens = -1
            if name in carry.engine_folder.states:
                await self._restore_one(engine, carry, 0, name)


async def _check(engine_folder: EngineFolder) -> bool:
    await asyncio.to_thread(engine_folder.check)
    return True
