"""Measurements kept on disk: one small JSON file per (file identity, arguments, llama.cpp build).

In `$XDG_CACHE_HOME/keepwarm/footprints`. Entries are written whole and renamed into place, so that
any number of processes may read and write at once. An entry that cannot be read is a miss: it is set
aside with a line in the log.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from backends.footprint.dry_run import DryRun
from backends.foreign.json_shapes import real, rows, table, text, whole
from backends.machine.files.folders import user_folder
from backends.machine.files.whole_files import is_there, read_shape, write_whole
from budget.footprint import EngineArgs
from budget.memory.further.speculation import DRAFTED_BY_DEFAULT, drafted_tokens

LOG = logging.getLogger("keepwarm.files")

T = TypeVar("T")
ENTRY_LIMIT_BYTES: Final = 1 << 20
_FORMAT: Final = 2


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/keepwarm/footprints`, or `~/.cache/...` where that is not set."""
    return user_folder("XDG_CACHE_HOME", ".cache") / "footprints"


def cache_key(identity: str, args: EngineArgs, build: str) -> str:
    """The name of an entry: a hash over all inputs of a measurement.

    `identity` is the model file's (`GgufHeader.identity`), `build` llama.cpp's (`build_id`). The
    files beside the model count by their identity, not by their paths: a replaced file makes another
    key, a renamed file does not.
    """
    beside: dict[str, object] = {
        "mmproj": file_identity(args.mmproj),
        "draft_model": file_identity(args.draft_model),
        "lora": [file_identity(path) for path in args.lora],
    }
    drafted = drafted_tokens(args)
    if drafted != (DRAFTED_BY_DEFAULT if args.draft_model is not None else 0):
        beside["drafted"] = str(drafted)
    text = json.dumps([_FORMAT, identity, {**named(args), **beside}, build], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def named(args: EngineArgs) -> dict[str, object]:
    """The arguments by name, for keys. `binding` is left out where it does not hold, as it once was."""
    fields = asdict(args)
    if not args.binding:
        del fields["binding"]
    return fields


def file_identity(path: str | None) -> str | None:
    """Device, inode, size and modification time of a file; its path where it is not there."""
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except (OSError, ValueError):
        return f"missing:{path}"
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def bytes_key(*parts: object) -> str:
    """The name of an entry of plain bytes by device."""
    text = json.dumps([_FORMAT, "bytes", *parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _dry_run(value: object) -> DryRun:
    data = table(value)
    for row in rows(data["buffers"]):
        text(row["buffer_type"]), text(row["device"])
        for part in ("weights_bytes", "kv_bytes", "compute_bytes"):
            whole(row[part])
    whole(data["output_bytes"]), whole(data["output_max_bytes"]), real(data["seconds"])
    whole(data["n_layers"], most=1 << 16), whole(data["n_ctx"], most=1 << 31)
    return DryRun.from_json(data)


def _bytes_by_device(value: object) -> dict[str, int]:
    found = {device: whole(n_bytes) for device, n_bytes in table(value).items()}
    if not found:
        raise ValueError("bytes of no device")
    return found


class JsonFolder:
    """A folder of small JSON files that may be gone, damaged or unwritable at any moment.

    None of that is an error. An unreadable file is set aside with one line in the log. A folder that cannot
    be written is logged once, until it can. A file that cannot be read at the moment is not replaced.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.folder = folder
        self._what = what
        self._unwritable = False
        self._unread: set[str] = set()

    def read(self, name: str, parse: Callable[[Any], T]) -> T | None:
        """The result of `parse` for a file, or None, as `whole_files.read_shape` returns it."""
        found = read_shape(self.folder / name, self._what, parse, ENTRY_LIMIT_BYTES)
        if found is None and is_there(self.folder / name):
            self._unread.add(name)
        return found

    def write(self, name: str, value: object) -> bool:
        """Write a file whole; returns whether it was written."""
        if name in self._unread:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.folder / name, json.dumps(value).encode())
        except OSError as error:
            if not self._unwritable:
                LOG.warning("%s is not kept: %s: %s", self._what, self.folder, error.strerror)
            self._unwritable = True
            return False
        self._unwritable = False
        return True


class FootprintCache:
    """Dry runs on disk. With a folder that cannot be written, every look-up is a miss."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self._files = JsonFolder(self.folder, "a cached footprint")

    def get(self, key: str) -> DryRun | None:
        """The entry of that key, or `None`; a broken one is set aside."""
        return self._files.read(_name(key), _dry_run)

    def put(self, key: str, run: DryRun) -> None:
        """Keep a measurement under that key; the last writer wins."""
        self._files.write(_name(key), run.to_json())

    def get_or_measure(self, key: str, measure: Callable[[], DryRun]) -> DryRun:
        """The entry of that key, measured and kept when it is not there."""
        found = self.get(key)
        if found is None:
            found = measure()
            self.put(key, found)
        return found

    def bytes_or_measure(
        self, key: str, measure: Callable[[], Mapping[str, int]]
    ) -> dict[str, int]:
        """Bytes by device under that key, measured and kept when they are not there."""
        found = self._files.read(_name(key), _bytes_by_device)
        if found is None:
            found = dict(measure())
            self._files.write(_name(key), found)
        return found


def _name(key: str) -> str:
    return f"{key}.json"
