"""The KV state that one keeper keeps on disk: its engine, its lock, and when it is deleted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterable
from typing import Any

from backends.footprint.cache import cache_key
from budget.footprint import Placement
from shim.config import Config
from shim.keeper import limits
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.kv.attempts import Attempts
from shim.keeper.kv.engine_folder import EngineFolder
from shim.keeper.kv.folder import KEY_BYTES
from shim.keeper.kv.saved_files import KvFiles, kv_files
from shim.keeper.shell.fault_counts import FaultCounts

LOG = logging.getLogger("keepwarm.keeper")


class KvKeeping:
    """The saved files, and a lock for each engine's.

    Args:
        files: the saved files; None keeps nothing.
        build: of llama.cpp, part of every key.
        faults: counts unexpected failures.
    """

    def __init__(
        self, files: KvFiles | None, build: str, faults: FaultCounts | None = None
    ) -> None:
        self._faults = faults or FaultCounts()
        self._tried = Attempts(self._faults).tried
        self._files = files
        self._config: Config | None = None
        self._refused = ""
        self._build = build
        self._locks: dict[str, asyncio.Lock] = {}
        self._sealing: set[asyncio.Task[None]] = set()

    def open(self, config: Config) -> None:
        """Keep KV state from the next loads on, if it is configured; logs what prevents it."""
        self._config = config
        self._files, refused = kv_files(config)
        if refused and refused != self._refused:
            LOG.warning("no KV state is carried over: %s", refused)
        if refused:
            self._faults.count("kv", f"no KV state is carried over: {refused}")
        self._refused = refused

    def _seal(self, engine_folder: EngineFolder, lock: asyncio.Lock) -> None:
        """Compute checksums in the background, while the next engine loads; a restore waits for it."""

        async def seal() -> None:
            async with lock:
                await asyncio.to_thread(engine_folder.seal)

        sealing = self._tried(seal(), f"sealing the KV state of {engine_folder.key}")
        task = asyncio.get_running_loop().create_task(sealing)
        self._sealing.add(task)
        task.add_done_callback(self._sealing.discard)

    def configured(
        self, before: Iterable[CatalogEngine], after: Iterable[CatalogEngine], config: Config
    ) -> None:
        """The configuration changed: delete the state of engines that are gone.

        If no state was kept before, it is kept from the next loads on.
        """
        if self._files is None:
            self.open(config)
        if self._files is None:
            return
        self._files.limit_bytes = config.kv.limit_bytes
        self._files.max_age_s = config.kv.max_age
        self._files.make_room()
        stay = {k for entry in after for k in _keys(entry, self._build)}
        # A configured model whose file cannot be read at the moment keeps what it has.
        unread = set(config.models) - {name for entry in after for name in entry.names}
        lost = [entry for entry in before if not unread.intersection(entry.names)]
        gone = {k for entry in lost for k in _keys(entry, self._build)} - stay
        self._files.discard(gone)

    def expire(self) -> None:
        """Delete conversations that are too old. If the folder could not be used, try to open it again."""
        if self._files is not None:
            self._files.expire()
        elif self._refused and self._config is not None:
            self.open(self._config)

    def kept(self) -> dict[str, Any]:
        """The kept state, JSON-serialisable: the folder, its budget, and rows by engine."""
        files = self._files
        return {
            "folder": str(files.folder) if files else None,
            "limit_bytes": files.limit_bytes if files else 0,
            "total_bytes": files.total_bytes if files else 0,
            "models": files.rows() if files else [],
            "refused": self._refused or None,
        }

    async def clear(self, model: str | None) -> tuple[int, int]:
        """Delete the kept state of all models or of one; returns the numbers of files and bytes.

        Waits for saves and restores that are under way.
        """
        if self._files is None:
            return 0, 0
        async with contextlib.AsyncExitStack() as held:
            for key in sorted(engine_folder.key for engine_folder in self._files.of(model)):
                await held.enter_async_context(self._locks.setdefault(key, asyncio.Lock()))
            cleared = self._files.clear(model)
        LOG.info("KV state of %s is deleted: %d files, %d bytes", model or "all models", *cleared)
        return cleared

    async def close(self, *, keep: bool) -> None:
        """Close the files once all engines have ended; keep the conversations or delete them."""
        if self._sealing:
            await asyncio.wait(self._sealing, timeout=limits.END_STEP_S)
        if self._files is not None:
            count, kept_bytes = await asyncio.to_thread(self._files.close, keep=keep)
            if count:
                LOG.info(
                    "%d conversations are kept for the next keeper: %d bytes", count, kept_bytes
                )


def kv_key(entry: CatalogEngine, placement: Placement, build: str) -> str:
    """The name of an engine's folder: file identity, arguments, llama.cpp build.

    The engine's id is part of it, because engines on one file can differ in threads or warm prompt.
    """
    text = f"{cache_key(entry.identity, placement.args, build)} {entry.engine_id} {entry.stamp}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()


def _keys(entry: CatalogEngine, build: str) -> list[str]:
    return [kv_key(entry, placement, build) for placement in entry.placements]
