"""Saved KV state on disk: one private folder per engine, an index with checksums, a byte budget.

The state of a conversation lives as long as the keeper: what an earlier keeper left is deleted at the
start. The state of a warm prompt, and what was measured, stay. One keeper at a time uses a folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.footprint.cache import write_whole
from backends.llama.process import private_folder
from budget.errors import ConfigError
from budget.kv_store import KvFigures, SavedState, make_room
from shim.config import Config
from shim.keeper.locks import FileLock
from shim.paths import state_dir

LOG = logging.getLogger("keepwarm.keeper")

WARM: Final = "warm.kv"
"""The state of an engine's warm prompt."""

_FORMAT: Final = 1
_INDEX: Final = "index.json"
_CHUNK_BYTES: Final = 1 << 22
_HEADER: Final = struct.Struct("<4sII")
_MAGIC: Final = b"qsgg"
_PACKED: Final = 0xFFFFFFFF
_MAX_TOKENS: Final = 1 << 24


def slot_file(slot: int) -> str:
    """The name of a slot's saved conversation."""
    return f"slot-{slot}.kv"


@dataclass(slots=True)
class Kept:
    """One saved file. `checksum` is None until it was computed; `used_at` is wall-clock time."""

    size_bytes: int
    used_at: float
    checksum: int | None = None
    tokens: tuple[int, ...] = ()


@dataclass(slots=True)
class Shelf:
    """What is kept of one engine: its files by name, and its figures. `origin` says whose it is."""

    key: str
    folder: Path
    origin: Mapping[str, Any]
    figures: KvFigures = field(default_factory=KvFigures)
    states: dict[str, Kept] = field(default_factory=dict)

    def drop(self, name: str) -> None:
        """Delete a file, known or not."""
        self.states.pop(name, None)
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def add(self, name: str) -> Kept | None:
        """Take a file in that an engine has written; None when it is not there."""
        try:
            size = (self.folder / name).stat().st_size
        except OSError:
            return None
        kept = Kept(size, time.time())
        self.states[name] = kept
        return kept

    def seal(self) -> None:
        """Compute the checksums that are missing and write the index. Reads whole files."""
        for name, kept in list(self.states.items()):
            if kept.checksum is None:
                path = self.folder / name
                kept.tokens, kept.checksum = read_tokens(path), checksum(path)
        self.write_index()

    def check(self) -> None:
        """Drop every file that is not what was saved. Reads whole files."""
        for name, kept in list(self.states.items()):
            if kept.checksum is None or checksum(self.folder / name) != kept.checksum:
                self.drop(name)

    def sweep(self) -> None:
        """Delete files that nobody knows: a save that was broken off."""
        for path in self.folder.glob("*.kv"):
            if path.name not in self.states:
                self.drop(path.name)

    def write_index(self) -> None:
        """Keep what outlives the keeper: the figures and the warm prompt's state."""
        warm = self.states.get(WARM)
        index: dict[str, Any] = {
            "format": _FORMAT,
            "origin": dict(self.origin),
            "figures": self.figures.to_json(),
            "warm": None,
        }
        if warm is not None and warm.checksum is not None:
            index["warm"] = {
                "size_bytes": warm.size_bytes,
                "used_at": warm.used_at,
                "checksum": warm.checksum,
            }
        with contextlib.suppress(OSError):
            write_whole(self.folder / _INDEX, json.dumps(index))

    @classmethod
    def read(cls, folder: Path) -> Shelf:
        """The shelf that an earlier keeper left.

        Raises:
            OSError, KeyError, TypeError, ValueError: there is none, or it is damaged.
        """
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']!r}")
        shelf = cls(
            folder.name, folder, dict(index["origin"]), KvFigures.from_json(index["figures"])
        )
        if (row := index["warm"]) is not None:
            kept = Kept(int(row["size_bytes"]), float(row["used_at"]), int(row["checksum"]))
            kept.tokens = read_tokens(folder / WARM)
            shelf.states[WARM] = kept
        return shelf


class KvFiles:
    """All shelves of one folder, within a byte budget."""

    def __init__(self, folder: Path, limit_bytes: int, lock: FileLock | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._lock = lock
        self._shelves: dict[str, Shelf] = {}

    @classmethod
    def open(cls, folder: Path, limit_bytes: int) -> KvFiles | None:
        """The folder, made with mode 0700 and swept; None when another keeper uses it.

        Raises:
            ConfigError: it belongs to somebody else, or others may enter it.
        """
        files = cls(private_folder(folder), limit_bytes)
        lock = FileLock(files.folder / "lock")
        if not lock.try_acquire():
            return None
        files._lock = lock
        for entry in files.folder.iterdir():
            if entry.is_dir():
                files._adopt(entry)
        files.make_room()
        return files

    def close(self) -> None:
        """Delete the conversations' state and let other keepers in."""
        for shelf in self._shelves.values():
            for name in list(shelf.states):
                if name != WARM:
                    shelf.drop(name)
        if self._lock is not None:
            self._lock.release()

    def shelf(self, key: str, origin: Mapping[str, Any]) -> Shelf:
        """The shelf of an engine; a new one when there is none.

        Raises:
            OSError: its folder cannot be made.
        """
        known = self._shelves.get(key)
        if known is None:
            folder = self.folder / key
            folder.mkdir(mode=0o700, exist_ok=True)
            known = self._shelves[key] = Shelf(key, folder, dict(origin))
        return known

    def discard(self, keys: Iterable[str]) -> None:
        """Delete whole shelves: their models are no longer configured."""
        for key in list(keys):
            shelf = self._shelves.pop(key, None)
            if shelf is not None:
                shutil.rmtree(shelf.folder, ignore_errors=True)

    def __contains__(self, key: object) -> bool:
        return key in self._shelves

    @property
    def total_bytes(self) -> int:
        """Bytes of all saved state."""
        return sum(k.size_bytes for shelf in self._shelves.values() for k in shelf.states.values())

    def make_room(self, coming_bytes: int = 0) -> None:
        """Delete what was of no use for longest until all, and what comes, fits the budget."""
        states = [
            SavedState(shelf.key, name, kept.size_bytes, kept.used_at)
            for shelf in self._shelves.values()
            for name, kept in shelf.states.items()
        ]
        for state in make_room(states, self.limit_bytes, coming_bytes):
            self._shelves[state.key].drop(state.name)

    def _adopt(self, folder: Path) -> None:
        try:
            shelf = Shelf.read(folder)
            fits = is_current(shelf.origin)
        except (OSError, KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._shelves[shelf.key] = shelf
        shelf.sweep()


def is_current(origin: Mapping[str, Any]) -> bool:
    """Whether the files that an engine was made of are still what they were."""
    for path, size, mtime_ns in origin["stamp"]:
        found = Path(path).stat()
        if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
            return False
    return True


def checksum(path: Path) -> int | None:
    """The CRC-32 of a file; None when it cannot be read."""
    value = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                value = zlib.crc32(chunk, value)
    except OSError:
        return None
    return value


def read_tokens(path: Path) -> tuple[int, ...]:
    """The tokens of a file that llama-server saved; empty when it is something else.

    The header is llama.cpp's (`llama_state_seq_save_file`: magic, version, count, tokens), the
    tokens in it are packed by llama-server (`server_tokens::serialize`: marker, version, count).
    """
    try:
        with path.open("rb") as file:
            magic, _, words = _HEADER.unpack(file.read(_HEADER.size))
            if magic != _MAGIC or words > _MAX_TOKENS:
                return ()
            packed = struct.unpack(f"<{words}I", file.read(4 * words))
    except (OSError, struct.error):
        return ()
    if len(packed) < 3 or packed[0] != _PACKED:
        return tuple(packed)
    count = packed[2]
    return tuple(packed[3 : 3 + count])


def kv_files(config: Config) -> KvFiles | None:
    """Where KV state is kept between loads; None when it is not."""
    if not config.kv.limit_bytes:
        return None
    folder = config.kv.folder or state_dir() / "kv"
    try:
        files = KvFiles.open(folder, config.kv.limit_bytes)
    except (OSError, ConfigError) as error:
        LOG.warning("no KV state is carried over: %s", error)
        return None
    if files is None:
        LOG.warning("no KV state is carried over: another keeper uses %s", folder)
    return files
