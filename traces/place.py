"""Where runs are kept, what they are called, and files that a pipe in their place never holds up."""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import IO, TypeGuard

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,119}")


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


def new_run_id() -> str:
    """An id that sorts by time: `20261121T134501Z-1f0c9a`."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """`run_id` itself.

    Raises:
        ValueError: it cannot be a file's name.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise ValueError(
            f"run_id {run_id!r} cannot name a file. Allowed: 1 to 120 letters, digits, '.', '_' and "
            "'-', not starting with '.' or '-'."
        )
    return run_id


def opened_regular(path: Path) -> IO[bytes]:
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
    """Nothing, for a file.

    Raises:
        OSError: it is a folder, a pipe or a device.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def check_numbers(sample: object, max_bytes: object, max_age: object) -> None:
    """Refuse numbers that a run cannot have.

    Raises:
        ValueError: says which one, and what is allowed.
    """
    if not (_is_number(sample) and 0 <= sample <= 1):
        raise ValueError(f"sample is {sample!r}. Allowed: a share from 0 to 1.")
    if not (_is_number(max_bytes) and max_bytes > 0):
        raise ValueError(f"max_bytes is {max_bytes!r}. Allowed: a number of bytes above 0.")
    if max_age is not None and not (_is_number(max_age) and max_age >= 0):
        raise ValueError(f"max_age is {max_age!r}. Allowed: seconds from 0 on, or None.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
