"""Removes what the inline keepers of killed programs left behind: their folders, and engines in them."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import time
from pathlib import Path
from typing import Final

from backends.engine_process.orphans import is_engines, sweep_leftovers
from shim.paths import INLINE_PREFIX, keeper_socket

_NAME: Final = re.compile(rf"{INLINE_PREFIX}[a-z0-9_]{{8}}")
_OLD_S: Final = 10.0
"""A socket refuses in the moment between its making and its first listening, too."""
_ANSWERS_WITHIN_S: Final = 1.0


def remove_dead(own: Path) -> None:
    """Remove the folders beside an inline keeper's own whose keepers are gone.

    A folder in which anything lies that no keeper makes stays as it is.
    """
    with contextlib.suppress(OSError), os.scandir(own.parent) as entries:
        for folder in [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):
                if folder != own and _is_ours(folder) and _is_dead(keeper_socket(folder)):
                    sweep_leftovers(folder)
                    keeper_socket(folder).unlink()
                    folder.rmdir()


def _is_ours(folder: Path) -> bool:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (found.st_uid, found.st_mode & 0o777) != (
        os.getuid(),
        0o700,
    ):
        return False
    names = os.listdir(folder)  # noqa: PTH208
    return all(name == keeper_socket(folder).name or is_engines(name) for name in names)


def _is_dead(path: Path) -> bool:
    """Whether a socket was listened on, and is no more."""
    found = path.lstat()
    if not stat.S_ISSOCK(found.st_mode) or time.time() - found.st_mtime < _OLD_S:
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_ANSWERS_WITHIN_S)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
