"""The folder of saved KV state: where it is, and which files in it are keepwarm's.

A marker in the folder and names of one form decide. Other files there were not written by keepwarm and
are never deleted; links are never followed. The rule and its alternatives are in
docs/decisions/0012-only-what-keepwarm-wrote-is-deleted.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backends.machine.files.folders import is_private, private_folder
from backends.machine.files.whole_files import is_leftover, write_whole
from budget.errors import ConfigError

LOG = logging.getLogger("keepwarm.keeper")

MARKER: Final = "KEEPWARM_KV"
SUBFOLDER: Final = "keepwarm-kv"
"""The subfolder for the state in a folder that holds other things."""
LOCK: Final = "lock"
INDEX: Final = "index.json"
KEY_BYTES: Final = 12
"""The folder of an engine is named by a hash of so many bytes."""

_MARKER_TEXT: Final = b"keepwarm keeps KV state here and deletes its own files.\n"
_KEY: Final = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")
_STATE: Final = re.compile(r"warm\.kv|slot-\d+\.kv|yield-[\w-]+\.kv")
_OLD_TEMPORARY: Final = re.compile(r"\.index\.[a-z0-9_]{8}")
_HELD_BY: Final = re.compile(r"(\d+ \d+\n)?")
_NAMED: Final = 5


def is_key(name: str) -> bool:
    """Whether an engine's folder may have this name."""
    return _KEY.fullmatch(name) is not None


def is_state(name: str) -> bool:
    """Whether a file of saved state may have this name."""
    return _STATE.fullmatch(name) is not None


def claim(folder: Path) -> Path:
    """The folder to keep state in: this one if it is keepwarm's, or private and empty; else a subfolder.

    The folder is made with mode 0700 and marked.

    Raises:
        ConfigError: other users may change it, or both it and the subfolder hold foreign files.
        OSError: it cannot be made or read.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_ours(folder) or (is_private(folder.resolve()) and not any(folder.iterdir())):
        return _take(folder)
    own = folder / SUBFOLDER
    if not _is_safe(folder):
        raise ConfigError(
            f"{folder} is not for KV state alone, and other users may rename what is in it.",
            hint="Give [kv] folder a folder of its own.",
            path=str(folder),
        )
    with contextlib.suppress(FileExistsError):
        own.mkdir(mode=0o700)
        LOG.warning("%s is not for KV state alone, which is kept in %s", folder, own)
    if own.is_symlink() or not (_is_ours(own) or not any(own.iterdir())):
        raise ConfigError(
            f"{folder} and {own} hold what keepwarm did not write.",
            hint="Give [kv] folder a folder of its own.",
            path=str(folder),
        )
    return _take(own)


def claimed(folder: Path) -> Path | None:
    """The folder that `claim` would return if it has state already; changes nothing."""
    for path in (folder, folder / SUBFOLDER):
        with contextlib.suppress(OSError):
            if _is_ours(path):
                return path
    return None


def mark(folder: Path) -> None:
    """Note that a folder is keepwarm's.

    Raises:
        OSError: the marker cannot be written.
    """
    if not _is_marked(folder):
        write_whole(folder / MARKER, _MARKER_TEXT)


def _take(folder: Path) -> Path:
    private = private_folder(folder, "[kv] folder")
    mark(private)
    return private


def _is_marked(folder: Path) -> bool:
    try:
        return stat.S_ISREG((folder / MARKER).lstat().st_mode)
    except OSError:
        return False


def _is_ours(folder: Path) -> bool:
    """Marked, or made before there was a marker: then it holds only a lock and engine folders."""
    if _is_marked(folder):
        return True
    with os.scandir(folder) as entries:
        found = list(entries)
    return bool(found) and all(_is_engine_folder(e) or _is_lock(e) for e in found)


def _is_engine_folder(entry: os.DirEntry[str]) -> bool:
    return is_key(entry.name) and entry.is_dir(follow_symlinks=False)


def _is_lock(entry: os.DirEntry[str]) -> bool:
    if entry.name != LOCK or not entry.is_file(follow_symlinks=False):
        return False
    size = entry.stat(follow_symlinks=False).st_size
    return (
        size < 64 and _HELD_BY.fullmatch(Path(entry.path).read_text(errors="replace")) is not None
    )


def _is_safe(folder: Path) -> bool:
    """Whether no other user can replace a subfolder of this folder."""
    found = folder.stat()
    others_write = bool(found.st_mode & 0o022) and not found.st_mode & stat.S_ISVTX
    return found.st_uid in {os.getuid(), 0} and not others_write


def engine_folders_in(folder: Path) -> Iterator[Path]:
    """The paths of the engine folders; changes nothing.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if _is_engine_folder(entry)]
    yield from sorted(found)


def clear_engine_folder(folder: Path) -> None:
    """Delete our files in an engine folder, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in own_names(folder):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
        folder.rmdir()


def own_names(folder: Path) -> list[str]:
    """The names in an engine folder that keepwarm may delete: state, indexes, unfinished files.

    Raises:
        OSError: it cannot be read.
    """
    now = time.time()
    with os.scandir(folder) as entries:
        return [e.name for e in entries if _is_own(e, now)]


def _is_own(entry: os.DirEntry[str], now: float) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return False
    name = entry.name
    if is_state(name) or name == INDEX or _OLD_TEMPORARY.fullmatch(name):
        return True
    return name.startswith((INDEX, f".{INDEX}.")) and is_leftover(entry, now)


def say_what_stays(folder: Path) -> None:
    """Name the foreign files in our folder in one warning.

    Raises:
        OSError: it cannot be read.
    """
    found = sorted(_foreign(folder))
    if found:
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        LOG.warning(
            "%s holds what keepwarm did not write; it stays: %s%s",
            folder,
            ", ".join(found[:_NAMED]),
            more,
        )


def _foreign(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_engine_folder(entry):
                with os.scandir(entry.path) as inside:
                    yield from (f"{entry.name}/{e.name}" for e in inside if not _is_known(e))
            elif entry.name not in {MARKER, LOCK} and not entry.name.startswith(f".{MARKER}."):
                yield entry.name


def _is_known(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith((INDEX, f".{INDEX}.")) or _is_own(entry, time.time())
