"""Measurements kept on disk: one small JSON file per (file identity, arguments, llama.cpp build).

In `$XDG_CACHE_HOME/keepwarm/footprints`. Entries are written whole and renamed into place, so that
any number of processes may read and write at once. An entry that cannot be read is a miss: it is
removed, and said in `warnings`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, TypeVar

from backends.footprint.dry_run import DryRun
from budget.footprint import EngineArgs

T = TypeVar("T")
_FORMAT: Final = 2


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/keepwarm/footprints`, or `~/.cache/...` where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "keepwarm" / "footprints"


def cache_key(identity: str, args: EngineArgs, build: str) -> str:
    """The name of an entry: a hash over everything that a measurement depends on.

    `identity` is the model file's (`GgufHeader.identity`), `build` llama.cpp's (`build_id`). The
    files beside the model count as what they are now, not as their paths: one that was replaced
    makes another key, one that was renamed does not.
    """
    beside = {
        "mmproj": file_identity(args.mmproj),
        "draft_model": file_identity(args.draft_model),
        "lora": [file_identity(path) for path in args.lora],
    }
    text = json.dumps([_FORMAT, identity, {**asdict(args), **beside}, build], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_identity(path: str | None) -> str | None:
    """Device, inode, size and modification time of a file; its path where it is not there."""
    if path is None:
        return None
    try:
        found = Path(path).stat()
    except OSError:
        return f"missing:{path}"
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def bytes_key(*parts: object) -> str:
    """The name of an entry of plain bytes by device."""
    text = json.dumps([_FORMAT, "bytes", *parts])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a private file (0600) so that a reader finds the old one or the new one, never a half.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    # mkstemp makes the file 0600.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _bytes_by_device(data: Mapping[str, Any]) -> dict[str, int]:
    return {str(device): int(n_bytes) for device, n_bytes in data.items()}


class FootprintCache:
    """Dry runs on disk. A folder that cannot be written makes every look-up a miss, nothing more.

    `warnings` collects what was found broken.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self.warnings: list[str] = []

    def get(self, key: str) -> DryRun | None:
        """The entry of that key, or `None`; a broken one is removed."""
        return self._read(key, DryRun.from_json)

    def _read(self, key: str, parse: Callable[[Any], T]) -> T | None:
        path = self._path(key)
        try:
            return parse(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except OSError as error:
            self.warnings.append(f"the cached footprint {path} cannot be read: {error.strerror}.")
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.warnings.append(f"the cached footprint {path} is damaged and was removed.")
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, key: str, run: DryRun) -> None:
        """Keep a measurement under that key; the last writer wins."""
        self._write(key, run.to_json())

    def _write(self, key: str, data: object) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path(key), json.dumps(data))
        except OSError as error:
            self.warnings.append(f"{self.folder} cannot be written: {error.strerror}.")

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
        found = self._read(key, _bytes_by_device)
        if found is None:
            found = dict(measure())
            self._write(key, found)
        return found

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
