"""Small files of ours: written whole or not at all, read without trusting what lies there."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
from pathlib import Path
from typing import Any, Final

from backends.foreign_json import BadJson, parse_json

LOG = logging.getLogger("keepwarm.files")

STATE_LIMIT_BYTES: Final = 64 * 1024 * 1024
DAMAGED: Final = ".damaged"

_numbers = itertools.count(1)


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file so that it is the old one or the new one at any moment, also after a power cut.

    Raises:
        OSError: it could not be written; the old file stands and nothing is left of the new one.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(new, flags, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Some file systems (sshfs, 9p) refuse to sync folders; the file itself is whole all the same.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_regular(path: Path, limit_bytes: int = STATE_LIMIT_BYTES) -> bytes:
    """The bytes of a regular file; a FIFO, a device or a folder in its place is refused at once.

    Raises:
        OSError: it is not there (`FileNotFoundError`), not a regular file, or larger than the limit.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", str(path))
    return data


def read_state(path: Path, what: str, limit_bytes: int = STATE_LIMIT_BYTES) -> Any:
    """The JSON value of a state file; None when there is none, or none that can be read.

    What cannot be read is set aside with one line in the log; it is never fatal.
    """
    try:
        return parse_json(read_regular(path, limit_bytes))
    except FileNotFoundError:
        return None
    except (OSError, BadJson) as error:
        set_aside(path, what, error)
        return None


def set_aside(path: Path, what: str, why: object) -> None:
    """Move a damaged state file out of the way, under one name beside it, and say so in one line."""
    aside = path.with_name(path.name + DAMAGED)
    try:
        path.replace(aside)
    except OSError as error:
        LOG.warning(
            "%s (%s) is not used: %s; it could not be set aside: %s", what, path, why, error
        )
        return
    LOG.warning("%s is not used: %s; it was set aside as %s", what, why, aside)
