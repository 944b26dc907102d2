"""Where runs are kept, what they are called, and files that a pipe in their place never holds up."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Final

from traces.checked import InvalidArgument, a_text

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")
GZIP_MAGIC: Final = b"\x1f\x8b"
"""The first bytes of a packed file."""
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems that have no locks."""
_PIECE_BYTES: Final = 1 << 20
_LOOK_S: Final = 0.005
_RUN_ID_ALLOWED: Final = (
    "what can name a file: 1 to 120 letters, digits, '.', '_' and '-', not starting with '.' or '-'"
)


def default_directory() -> Path:
    """Where runs go: `$KEEPWARM_TRACE_DIR`, else `keepwarm/runs` in the user's XDG state folder.

    A user without a home gets one below `/`, which cannot be written: the run says so as its problem.
    """
    configured = os.environ.get("KEEPWARM_TRACE_DIR")
    if configured:
        return Path(configured).expanduser()
    # As all state folders: the standard says that a relative one counts as not set.
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:
        home = Path("/", Path.home())
    except RuntimeError:
        home = Path("/")
    base = state if state.is_absolute() else home / ".local" / "state"
    return base / "keepwarm" / "runs"


def absolute(path: Path) -> Path:
    """A path that stays the same whatever folder the program changes to; `~` is the user's home."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        # A user without a home: such a folder cannot be made, which the run says as its problem.
        return path.absolute()


def new_run_id() -> str:
    """An id that sorts by time: `20261121T134501Z-1f0c9a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """The id, once it is known to name a file.

    Raises:
        InvalidArgument: it cannot be a file's name.
    """
    if not _RUN_ID.fullmatch(a_text("run_id", run_id)):
        raise InvalidArgument("run_id", run_id, _RUN_ID_ALLOWED)
    return run_id


def opened_regular(path: Path) -> BufferedReader:
    """The file at `path`, to read.

    Raises:
        OSError: it cannot be read, or it is a folder, a pipe or a device.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        check_regular(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def check_regular(descriptor: int, path: Path) -> None:
    """Refuse what is no file.

    Raises:
        OSError: it is a folder, a pipe or a device.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def create_numbered(folder: Path, stem: str, suffix: str) -> tuple[int, Path]:
    """A new file of its owner's alone, to append to, with its path.

    A number is added to a name that is taken, be it by a packed file.

    Raises:
        OSError: it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    number = 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}"
        if not path.with_name(path.name + ".gz").exists():
            with suppress(FileExistsError):
                return os.open(path, flags, 0o600), path
        number += 1


def write_all(descriptor: int, data: bytes) -> int:
    """Write data, with more than one system call where the disk takes less; returns how much it was.

    Raises:
        OSError: not all of it can be written.
    """
    left = data
    while left:
        left = left[os.write(descriptor, left) :]
    return len(data)


def lock(descriptor: int, path: Path, within_s: float) -> None:
    """Lock a file for this process alone; where a file system has no locks, nothing happens.

    Raises:
        TimeoutError: another process keeps it locked, which may be a stopped one.
        OSError: it cannot be locked, and yet the file system has locks.
    """
    until = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                why = f"another process has kept it locked for {within_s:g} s"
                raise TimeoutError(errno.ETIMEDOUT, why, str(path)) from None
            time.sleep(_LOOK_S)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise
        else:
            return


def size_without_nuls(descriptor: int, size: int) -> int:
    """The bytes of a file before the NULs at its end, which a crash of the machine leaves there.

    All of a packed one: its end is the number of its bytes, whose last are NULs.
    """
    if os.pread(descriptor, len(GZIP_MAGIC), 0) == GZIP_MAGIC:
        return size
    while size:
        begin = max(0, size - _PIECE_BYTES)
        kept = os.pread(descriptor, size - begin, begin).rstrip(b"\0")
        if kept:
            return begin + len(kept)
        size = begin
    return 0
