"""Small state files: written whole or not at all, and checked when read."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from backends.foreign.foreign_json import BadJson, parse_json
from backends.machine.files.unwritten import UNWRITTEN
from budget.errors import KeepwarmError

LOG = logging.getLogger("keepwarm.files")

STATE_LIMIT_BYTES: Final = 64 * 1024 * 1024
DAMAGED: Final = ".damaged"
KEEP_DAMAGED_S: Final = 30 * 86400.0
WRITING_S: Final = 60.0
"""No file is being written for longer by a process that cannot be seen from here (a container's)."""
RECYCLED_S: Final = 86400.0
"""After a day a process of the writer's number is another one."""

_MOST_SAID: Final = 300
T = TypeVar("T")
_UNFINISHED: Final = re.compile(r"\..+\.(\d+)-\d+\.new")
_NOT_NOW: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN}
    | {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ENODEV}
)
"""Errors that do not show damage; the file may be readable the next time."""
_BAD_SHAPE: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    KeepwarmError,
)

_numbers = itertools.count(1)


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file so that it is the old one or the new one at any moment, also after a power cut.

    Raises:
        OSError: it could not be written, or there is a device or a FIFO in its place; the old file stands
            and nothing is left of the new one.
    """
    _check_replaceable(path)
    with UNWRITTEN.noting(path.parent):
        _replace(path, data, mode)
    _sync_folder(path.parent)


def _check_replaceable(path: Path) -> None:
    # To replace /dev/null, as root may, would take it from every program of the machine.
    with contextlib.suppress(FileNotFoundError):
        kind = stat.S_IFMT(path.lstat().st_mode)
        if kind not in (stat.S_IFREG, stat.S_IFLNK):
            number = errno.EISDIR if kind == stat.S_IFDIR else errno.EINVAL
            raise OSError(number, "it is not a regular file", str(path))


def _replace(path: Path, data: bytes, mode: int) -> None:
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


def _sync_folder(folder: Path) -> None:
    # Some file systems (sshfs, 9p) refuse to sync folders; the file itself is whole all the same.
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def regular_descriptor(path: Path) -> int:
    """A descriptor of a regular file; a FIFO, a device or a folder in its place is refused at once.

    Raises:
        OSError: it is not there (`FileNotFoundError`), cannot be read, or is not a regular file.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_regular(path: Path) -> BinaryIO:
    """As `regular_descriptor`, opened for reading."""
    return os.fdopen(regular_descriptor(path), "rb")


def read_regular(path: Path, limit_bytes: int = STATE_LIMIT_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: as `open_regular` says, or it is larger than the limit.
    """
    with open_regular(path) as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes} bytes", str(path))
    return data


def read_shape(
    path: Path, what: str, parse: Callable[[Any], T], limit_bytes: int = STATE_LIMIT_BYTES
) -> T | None:
    """What `parse` makes of the JSON value of a state file; None when there is none, or no readable one.

    A file that cannot be read is set aside with one line in the log; it is never fatal.
    A value of another shape is damage as well: `parse` raises `ValueError`, `TypeError`,
    `LookupError`, `AttributeError`, `ArithmeticError` or a `KeepwarmError` for it.
    """
    try:
        return parse_state(path, parse, limit_bytes)
    except FileNotFoundError:
        if path.is_symlink():
            set_aside(path, what, "the file that it links to is not there")
        return None
    except OSError as error:
        if error.errno in _NOT_NOW:
            LOG.warning("%s (%s) is not used: %s; it stays where it is", what, path, error.strerror)
        else:
            set_aside(path, what, error.strerror)
    except BadState as error:
        set_aside(path, what, error)
    return None


def is_there(path: Path) -> bool:
    """Whether there is anything at a path, be it a link to nothing.

    After `read_shape` returned None, such a file could neither be read nor set aside. It must not be
    replaced, because its content would be lost.
    """
    return os.path.lexists(path)


class BadState(ValueError):
    """A state file that is not JSON, or JSON of another shape."""


def parse_state(path: Path, parse: Callable[[Any], T], limit_bytes: int = STATE_LIMIT_BYTES) -> T:
    """The result of `parse` for the JSON value of a file. Nothing is moved or logged.

    Raises:
        OSError: the file cannot be read.
        BadState: it does not hold what `parse` takes.
    """
    data = read_regular(path, limit_bytes)
    try:
        return parse(parse_json(data))
    except BadJson as error:
        raise BadState(str(error)) from None
    except _BAD_SHAPE as error:
        raise BadState(f"{type(error).__name__}: {error}"[:_MOST_SAID]) from None


def set_aside(path: Path, what: str, why: object) -> None:
    """Move a damaged state file out of the way, under one name beside it, and log one line."""
    aside = path.with_name(path.name + DAMAGED)
    try:
        path.replace(aside)
    except OSError as error:
        LOG.warning(
            "%s (%s) is not used: %s; it could not be set aside: %s", what, path, why, error
        )
        return
    LOG.warning("%s is not used: %s; it was set aside as %s", what, why, aside)


def sweep_leftovers(folder: Path, *, now: float | None = None) -> None:
    """Delete what `write_whole` and `set_aside` left in a folder: unfinished files, old damaged ones.

    A file that is still being written stays, and so does a damaged one for a month. Whatever has
    another name stays, and nothing but regular files is deleted.
    """
    clock_s = time.time() if now is None else now
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if is_leftover(entry, clock_s):
                    Path(entry.path).unlink()


def is_leftover(entry: os.DirEntry[str], now: float) -> bool:
    """Whether `sweep_leftovers` deletes a folder's entry.

    Raises:
        OSError: it is gone.
    """
    unfinished = _UNFINISHED.fullmatch(entry.name)
    if unfinished is None and not entry.name.endswith(DAMAGED):
        return False
    if not entry.is_file(follow_symlinks=False):
        return False
    age_s = now - entry.stat(follow_symlinks=False).st_ctime
    if unfinished is None:
        return age_s > KEEP_DAMAGED_S
    return age_s > WRITING_S and not (age_s < RECYCLED_S and _is_alive(int(unfinished[1])))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
