"""The engine folder: the saved KV state of one engine, with checksums and an index."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.foreign.json_shapes import real, rows, table, text, whole
from backends.machine.files.whole_files import open_regular, parse_state, read_shape, write_whole
from budget.eviction.kv_store import KvFigures
from shim.keeper.kv.folder import INDEX, is_state, own_names

LOG = logging.getLogger("keepwarm.keeper")

WARM: Final = "warm.kv"
"""The state of an engine's warm prompt."""

_FORMAT: Final = 2
_SLOT: Final = "slot-"
_CHUNK_BYTES: Final = 1 << 22
_HEADER: Final = struct.Struct("<4sII")
_MAGIC: Final = b"qsgg"
_PACKED: Final = 0xFFFFFFFF
_MAX_TOKENS: Final = 1 << 24
_INDEX_LIMIT_BYTES: Final = 1 << 20
_MOST_TOKENS_SEEN: Final = 1e12
_MOST_SECONDS: Final = 1e9


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
class EngineFolder:
    """The saved KV state of one engine: files by name, and figures. `origin` names its models."""

    key: str
    folder: Path
    origin: Mapping[str, Any]
    figures: KvFigures = field(default_factory=KvFigures)
    states: dict[str, Kept] = field(default_factory=dict)
    unwritten: bool = False
    """The last write of the index failed. Only the first such failure is logged."""

    @property
    def models(self) -> list[str]:
        """The configured names of the engine's models."""
        return [str(name) for name in self.origin.get("models", ())]

    def drop(self, name: str) -> None:
        """Delete a saved file by name, whether or not the index knows it."""
        self.states.pop(name, None)
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def add(self, name: str) -> Kept | None:
        """Note a file that an engine has written; None when it is not there."""
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
        """Drop every file that changed since it was saved. Reads whole files."""
        for name, kept in list(self.states.items()):
            if kept.checksum is None or checksum(self.folder / name) != kept.checksum:
                self.drop(name)

    def sweep(self) -> None:
        """Delete our files that the index does not know: unfinished saves, an unfinished index."""
        with contextlib.suppress(OSError):
            for name in own_names(self.folder):
                if name != INDEX and name not in self.states:
                    self.drop(name)

    @property
    def conversations(self) -> dict[str, Kept]:
        """The saved slots, without the warm prompt and without interrupted requests."""
        return {name: kept for name, kept in self.states.items() if name.startswith(_SLOT)}

    def write_index(self, *, conversations: bool = False) -> None:
        """Write the index for the next keeper: figures, the warm prompt's state, perhaps conversations.

        Conversations are noted only when the keeper ends in good order, because after a crash one of
        them may be the cause.
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
        try:
            write_whole(self.folder / INDEX, json.dumps(index).encode())
        except OSError as error:
            if not self.unwritten:
                LOG.warning(
                    "the next keeper will not know the KV state in %s: %s", self.folder, error
                )
            self.unwritten = True
        else:
            self.unwritten = False

    @classmethod
    def read(cls, folder: Path) -> EngineFolder | None:
        """The engine folder that an earlier keeper left; None when there is none, or it is damaged.

        A damaged index is set aside with a line in the log. Checksums are compared when state is restored.
        """
        what = "an index of saved KV state"
        return read_shape(
            folder / INDEX, what, lambda v: _engine_folder(folder, v), _INDEX_LIMIT_BYTES
        )

    @classmethod
    def look(cls, folder: Path) -> EngineFolder | None:
        """As `read`, but changes nothing and logs nothing."""
        try:
            return parse_state(
                folder / INDEX, lambda v: _engine_folder(folder, v), _INDEX_LIMIT_BYTES
            )
        except (OSError, ValueError):
            return None


def _engine_folder(folder: Path, value: object) -> EngineFolder:
    index = table(value)
    if whole(index["format"]) != _FORMAT:
        raise ValueError(f"format {index['format']}")
    origin = dict(table(index["origin"]))
    for path, size, mtime_ns in rows(origin.get("stamp", [])):
        text(path), whole(size), whole(mtime_ns, -(1 << 63), 1 << 63)
    for name in rows(origin.get("models", [])):
        text(name)
    if origin.get("engine") is not None:
        text(origin["engine"])
    engine_folder = EngineFolder(folder.name, folder, origin, _figures(index["figures"]))
    now = time.time()
    for name, row in table(index["states"]).items():
        if not is_state(name):
            raise ValueError(f"{name[:40]!r} is no name of saved state")
        size, used_at, digest = row
        kept = Kept(whole(size), min(real(used_at), now), whole(digest, 0, 0xFFFFFFFF))
        path = folder / name
        if not path.is_symlink() and path.is_file() and path.stat().st_size == kept.size_bytes:
            kept.tokens = read_tokens(path)
            engine_folder.states[name] = kept
    return engine_folder


def _figures(value: object) -> KvFigures:
    for name, rate in table(value).items():
        if name != "reuse":
            real(rate["tokens"], most=_MOST_TOKENS_SEEN), real(rate["seconds"], most=_MOST_SECONDS)
    return KvFigures.from_json(table(value))


def is_stale(origin: Mapping[str, Any]) -> bool:
    """Whether a file that an engine was made of is there and is another one than it was.

    A file that cannot be reached (its disk is not mounted, say) may come back, so it does not count.
    """
    for path, size, mtime_ns in origin.get("stamp", ()):
        try:
            found = os.stat(path)  # noqa: PTH116 - the path is foreign, and may be no path at all
        except (OSError, ValueError):
            continue
        if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
            return True
    return False


def checksum(path: Path) -> int | None:
    """The CRC-32 of a file; None when it cannot be read."""
    value = 0
    try:
        with open_regular(path) as file:
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
        with open_regular(path) as file:
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
