"""What is kept of one engine's KV state: a private folder of files, their checksums, and an index."""

from __future__ import annotations

import contextlib
import json
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.footprint.cache import write_whole
from budget.kv_store import KvFigures

WARM: Final = "warm.kv"
"""The state of an engine's warm prompt."""

_FORMAT: Final = 2
_INDEX: Final = "index.json"
_SLOT: Final = "slot-"
_CHUNK_BYTES: Final = 1 << 22
_HEADER: Final = struct.Struct("<4sII")
_MAGIC: Final = b"qsgg"
_PACKED: Final = 0xFFFFFFFF
_MAX_TOKENS: Final = 1 << 24


def slot_file(slot: int) -> str:
    """The name of a slot's saved conversation."""
    return f"{_SLOT}{slot}.kv"


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

    @property
    def models(self) -> list[str]:
        """The names that callers use for it."""
        return [str(name) for name in self.origin.get("models", ())]

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

    def seal(self, *, conversations: bool = False) -> None:
        """Compute the checksums that are missing and write the index. Reads whole files."""
        for name, kept in list(self.states.items()):
            if kept.checksum is None:
                path = self.folder / name
                kept.tokens, kept.checksum = read_tokens(path), checksum(path)
        self.write_index(conversations=conversations)

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

    @property
    def conversations(self) -> dict[str, Kept]:
        """The saved slots, without the warm prompt and without interrupted requests."""
        return {name: kept for name, kept in self.states.items() if name.startswith(_SLOT)}

    def write_index(self, *, conversations: bool = False) -> None:
        """Note what the next keeper may take: the figures, the warm prompt's state, and slots' or not.

        Slots are noted when the keeper ends in good order. After a crash they may be why.
        """
        kept = self.conversations if conversations else {}
        if WARM in self.states:
            kept[WARM] = self.states[WARM]
        index: dict[str, Any] = {
            "format": _FORMAT,
            "origin": dict(self.origin),
            "figures": self.figures.to_json(),
            "states": {
                name: [state.size_bytes, state.used_at, state.checksum]
                for name, state in kept.items()
                if state.checksum is not None
            },
        }
        with contextlib.suppress(OSError):
            write_whole(self.folder / _INDEX, json.dumps(index))

    @classmethod
    def read(cls, folder: Path) -> Shelf:
        """The shelf that an earlier keeper left; checksums are compared when state is restored.

        Raises:
            OSError, KeyError, TypeError, ValueError: there is none, or it is damaged.
        """
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']!r}")
        shelf = cls(
            folder.name, folder, dict(index["origin"]), KvFigures.from_json(index["figures"])
        )
        for name, (size, used_at, digest) in dict(index["states"]).items():
            path = folder / name
            if path.parent != folder or not path.is_file() or path.stat().st_size != int(size):
                continue
            shelf.states[name] = Kept(int(size), float(used_at), int(digest), read_tokens(path))
        return shelf


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
