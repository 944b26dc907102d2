"""Saved KV state on disk: one engine folder per engine, and a byte budget over all of them.

The next keeper takes over measured figures and the state of warm prompts. It also takes over recent
conversations if the keeper before it ended in good order; after a crash they are deleted. One keeper at a
time uses a folder. A model's state is deleted when the model's file has changed; while the file cannot be
reached, the state stays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backends.machine.files.file_locks import FileLock
from backends.machine.files.whole_files import is_there, sweep_leftovers
from budget.errors import KeepwarmError
from budget.eviction.kv_store import SavedState, make_room
from shim.config import Config
from shim.keeper.kv.engine_folder import WARM, EngineFolder, is_stale
from shim.keeper.kv.folder import (
    INDEX,
    LOCK,
    claim,
    claimed,
    clear_engine_folder,
    engine_folders_in,
    is_key,
    mark,
    say_what_stays,
)
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")


class KvFiles:
    """All engine folders under one folder, within a byte budget.

    Conversations that were not used for `max_age_s` are deleted; with 0 all are, when the keeper ends.
    """

    def __init__(self, folder: Path, limit_bytes: int, max_age_s: float = 0.0) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.max_age_s = max_age_s
        self._lock: FileLock | None = None
        self._engine_folders: dict[str, EngineFolder] = {}

    @classmethod
    def open(cls, folder: Path, limit_bytes: int, max_age_s: float = 0.0) -> KvFiles | None:
        """The folder that `claim` returns, locked and swept; None when another keeper uses it.

        Files that keepwarm did not write stay, and a warning names them.

        Raises:
            ConfigError: it is not private, or is full of other things.
            OSError: it cannot be made, read or written.
        """
        files = cls(claim(folder), limit_bytes, max_age_s)
        lock = FileLock(files.folder / LOCK)
        if not lock.try_acquire():
            return None
        files._lock = lock
        for found in engine_folders_in(files.folder):
            files._adopt(found)
        sweep_leftovers(files.folder)
        say_what_stays(files.folder)
        if not max_age_s:
            files.clear(warm=False)
        files.expire()
        files.make_room()
        return files

    @classmethod
    def look(cls, folder: Path) -> KvFiles | None:
        """The folder for display: nothing is locked, swept or made. None when there is no folder.

        Raises:
            OSError: the folder cannot be read.
        """
        own = claimed(folder)
        if own is None:
            return None
        files = cls(own, 0)
        for found in engine_folders_in(own):
            engine_folder = EngineFolder.look(found)
            if engine_folder is not None:
                files._engine_folders[engine_folder.key] = engine_folder
        return files

    def close(self, *, keep: bool = False) -> tuple[int, int]:
        """Release the folder to other keepers. Call it when no engine writes any more.

        Args:
            keep: leave the conversations to the next keeper; without it they are deleted.

        Returns:
            How many conversations are kept, and their bytes.
        """
        self.expire()
        kept = 0, 0
        if keep and self.max_age_s:
            for engine_folder in self._engine_folders.values():
                engine_folder.sweep()
                engine_folder.seal(conversations=True)
                states = engine_folder.conversations.values()
                kept = kept[0] + len(states), kept[1] + sum(s.size_bytes for s in states)
        else:
            self.clear(warm=False)
        self.release()
        return kept

    def release(self) -> None:
        """Release the folder as it is."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def expire(self) -> None:
        """Delete the conversations that were not used for too long."""
        if not self.max_age_s:
            return
        since = time.time() - self.max_age_s
        for engine_folder in self._engine_folders.values():
            for name, kept in engine_folder.conversations.items():
                if kept.used_at < since:
                    engine_folder.drop(name)

    def of(self, model: str | None) -> list[EngineFolder]:
        """The engine folders of one model, or all of them."""
        return [s for s in self._engine_folders.values() if model is None or model in s.models]

    def clear(self, model: str | None = None, *, warm: bool = True) -> tuple[int, int]:
        """Delete saved state, of all models or of one; returns how many files and bytes."""
        files, freed = 0, 0
        for engine_folder in self.of(model):
            for name, kept in list(engine_folder.states.items()):
                if warm or name != WARM:
                    engine_folder.drop(name)
                    files, freed = files + 1, freed + kept.size_bytes
        return files, freed

    def rows(self) -> list[dict[str, Any]]:
        """A row for each engine with saved state, the last used first; JSON-serialisable.

        `tokens` and `bytes` are those of the conversations; `used_s` is None when there are none.
        """
        now, found = time.time(), []
        for engine_folder in self._engine_folders.values():
            if not engine_folder.states:
                continue
            talks, warm = engine_folder.conversations.values(), engine_folder.states.get(WARM)
            used_s = min((max(0.0, now - kept.used_at) for kept in talks), default=None)
            found.append(
                {
                    "models": engine_folder.models,
                    "engine": engine_folder.origin.get("engine"),
                    "conversations": len(talks),
                    "tokens": sum(len(kept.tokens) for kept in talks),
                    "bytes": sum(kept.size_bytes for kept in talks),
                    "warm_prompt_bytes": warm.size_bytes if warm else 0,
                    "used_s": used_s,
                }
            )
        return sorted(found, key=lambda row: (row["used_s"] is None, row["used_s"] or 0.0))

    def engine_folder(self, key: str, origin: Mapping[str, Any]) -> EngineFolder:
        """The engine folder of a key, made if there is none. `folder.is_key` says which keys are valid.

        Raises:
            OSError: its folder cannot be made.
        """
        if not is_key(key):
            raise ValueError(f"{key!r} is no name of an engine's folder")
        folder = self.folder / key
        # Made every time, because another program may delete them and llama-server needs them to start.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark(self.folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink():
            raise NotADirectoryError(f"{folder} is a link, which keepwarm did not make")
        known = self._engine_folders.get(key)
        if known is None:
            known = self._engine_folders[key] = EngineFolder(key, folder, {})
        # The same engine may have other names by now.
        known.origin = dict(origin) or known.origin
        return known

    def discard(self, keys: Iterable[str]) -> None:
        """Delete whole engine folders, because their models are no longer configured."""
        for key in list(keys):
            engine_folder = self._engine_folders.pop(key, None)
            if engine_folder is not None:
                clear_engine_folder(engine_folder.folder)

    def __contains__(self, key: object) -> bool:
        return key in self._engine_folders

    @property
    def total_bytes(self) -> int:
        """Bytes of all saved state."""
        return sum(
            k.size_bytes
            for engine_folder in self._engine_folders.values()
            for k in engine_folder.states.values()
        )

    def make_room(self, coming_bytes: int = 0) -> None:
        """Delete the least recently used state until the rest and `coming_bytes` fit the budget."""
        states = [
            SavedState(engine_folder.key, name, kept.size_bytes, kept.used_at)
            for engine_folder in self._engine_folders.values()
            for name, kept in engine_folder.states.items()
        ]
        for state in make_room(states, self.limit_bytes, coming_bytes):
            self._engine_folders[state.key].drop(state.name)

    def _adopt(self, folder: Path) -> None:
        engine_folder = EngineFolder.read(folder)
        if engine_folder is None and is_there(folder / INDEX):
            return  # the index is there, and may be readable the next time
        if engine_folder is None or is_stale(engine_folder.origin):
            clear_engine_folder(folder)
            return
        self._engine_folders[engine_folder.key] = engine_folder
        engine_folder.sweep()


def kv_folder(config: Config) -> Path:
    """The configured folder of KV state. `claim` says which folder in it is used.

    Raises:
        ConfigError: there is no state folder.
    """
    return config.kv.folder or state_dir() / "kv"


def kv_files(config: Config) -> tuple[KvFiles | None, str]:
    """The keeper's saved KV state, and ''; or None, and why state cannot be saved ('': not configured)."""
    if not config.kv.limit_bytes:
        return None, ""
    where = config.kv.folder or "the state folder"
    try:
        where = kv_folder(config)
        files = KvFiles.open(where, config.kv.limit_bytes, config.kv.max_age)
    except (OSError, KeepwarmError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        return None, f"{where} cannot be used: {said}"
    return files, "" if files is not None else f"another keeper uses {where}"
