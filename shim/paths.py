"""The folders that keepwarm uses: the keeper's, which is one per user, and those of state.

A user has one keeper, although sessions differ in their variables (cron, ssh, a service). The keeper's
folder therefore depends on the user alone. Several places are searched in order for a running keeper; if
none runs, the first place that can be used is taken (docs/decisions/0012).

The harness, which may not reach below `shim`, has `write_whole`, `open_regular` and locks from here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from backends.machine.files.descriptors import raise_descriptor_limit as raise_descriptor_limit
from backends.machine.files.file_locks import KEEPER_LOCK, is_held
from backends.machine.files.file_locks import NO_LOCKS as NO_LOCKS
from backends.machine.files.file_locks import SHARED as SHARED
from backends.machine.files.file_locks import FileLock as FileLock
from backends.machine.files.folders import (
    RUNTIME_VARIABLE,
    check_private,
    check_socket_path,
    fits_sockets,
    home_of,
    is_private,
    make_folder,
    user_folder,
)
from backends.machine.files.lock_holders import Holder as Holder
from backends.machine.files.whole_files import open_regular as open_regular
from backends.machine.files.whole_files import write_whole as write_whole
from budget.errors import ConfigError

LOG = logging.getLogger("keepwarm.paths")

LOCK_VARIABLE: Final = "KEEPWARM_LOCK_DIR"
STATE_VARIABLE: Final = "XDG_STATE_HOME"
SOCKET_NAME: Final = "keeper.sock"
STDERR_BYTES: Final = 1024 * 1024

INLINE_PREFIX: Final = "keepwarm-"
"""Of the folders of inline keepers, which `mkdtemp` names."""
_LONGEST_SOCKET: Final = "e-000000000000.sock"
"""The longest name of an engine's socket; the name of the keeper's socket is shorter."""
_STATE_NAME: Final = "keepwarm"
_MACHINE_FILES: Final = (
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/proc/sys/kernel/random/boot_id",
)

_warned: set[Path] = set()


def runtime_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The private folder of this user's keeper: its socket, its engines' sockets, its lock.

    `$KEEPWARM_RUNTIME_DIR` where that is set. Otherwise the folder in which a keeper of this user runs,
    or else the first place that can be used; it is made with mode 0700.

    Raises:
        ConfigError: the folder cannot be used, because of its owner, its mode or its length.
    """
    given = env.get(RUNTIME_VARIABLE)
    if given:
        return named_runtime(Path(given))
    places = list(runtime_places())
    for place in places:
        if is_private(place) and is_held(place / KEEPER_LOCK):
            return place
    return _first_usable(places)


def named_runtime(folder: Path) -> Path:
    """A keeper's folder that was named on purpose, made with mode 0700 when it is missing.

    Raises:
        ConfigError: it cannot be used, because of its owner, its mode or its length.
    """
    hint = f"Set ${RUNTIME_VARIABLE} to a private folder."
    return _usable(make_folder(folder.absolute(), "The keeper's folder", hint, RUNTIME_VARIABLE))


def runtime_places() -> Iterator[Path]:
    """Where this user's keeper may be, in the order in which it is searched.

    It does not depend on environment variables. First comes a folder that stays when the user logs out.
    Its name includes the machine's, because several machines may share a home.
    """
    uid = os.getuid()
    home = home_of(uid)
    if home is not None:
        yield home / ".local" / "state" / _STATE_NAME / f"run-{_machine()}"
    yield Path(f"/run/user/{uid}/keepwarm")
    yield Path(f"/dev/shm/keepwarm-{uid}")  # noqa: S108 - the folder is private, and checked
    yield Path(f"/tmp/keepwarm-{uid}")  # noqa: S108


def _first_usable(places: list[Path]) -> Path:
    problems = []
    for place in places:
        try:
            return _checked(make_place(place))
        except (OSError, ConfigError) as error:
            why = error.message if isinstance(error, ConfigError) else error.strerror
            problems.append(f"{place}: {str(why).rstrip('.')}")
    raise ConfigError(
        f"No place for the keeper's folder can be used: {'; '.join(problems)}.",
        hint=f"Set ${RUNTIME_VARIABLE} to a private folder.",
        places=[str(place) for place in places],
    )


def make_place(place: Path) -> Path:
    """A keeper's folder, made again when it is gone. Folders above it are made only if keepwarm owns them.

    Raises:
        OSError: it cannot be made.
        ConfigError: it is not private, or too long for sockets.
    """
    if place.parent.name == _STATE_NAME and place.parent.parent.name == "state":
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(mode=0o700, exist_ok=True)
    return _usable(place)


def _usable(folder: Path) -> Path:
    """The folder itself.

    Raises:
        OSError: it is not there.
        ConfigError: it is not private, or too long for sockets.
    """
    check_private(folder)
    check_socket_path(folder / _LONGEST_SOCKET)
    return folder


def _checked(folder: Path) -> Path:
    """The folder, once a socket was made in it: some file systems of homes hold none.

    Raises:
        OSError: it holds none, or is full.
    """
    path = folder / f".{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(str(path))
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    return folder


def _machine() -> str:
    """A short name of this machine: a hash of its id, because the id itself is confidential."""
    for file in _MACHINE_FILES:
        with contextlib.suppress(OSError):
            text = Path(file).read_text().strip()
            if text:
                return hashlib.sha256(f"keepwarm {text}".encode()).hexdigest()[:8]
    return "here"


def inline_dir() -> Path:
    """A new private folder for an inline keeper, which removes it.

    Raises:
        ConfigError: no folder for temporary files can be used.
    """
    problems = []
    for parent in dict.fromkeys((None, "/tmp", "/dev/shm")):  # noqa: S108
        try:
            folder = Path(tempfile.mkdtemp(prefix=INLINE_PREFIX, dir=parent))
        except OSError as error:
            problems.append(f"{parent or 'the temporary folder'}: {error.strerror}")
            continue
        if fits_sockets(folder / _LONGEST_SOCKET):
            return folder
        folder.rmdir()
        problems.append(f"{folder.parent}: too long for sockets")
    raise ConfigError(
        f"There is no folder for an inline keeper's sockets. {'; '.join(problems)}.",
        hint="Set $TMPDIR to a folder of yours with a short path.",
        variable="TMPDIR",
    )


def cache_dir() -> Path:
    """The folder for files that can be made again (footprints, the demo's models). It may not exist yet."""
    return user_folder("XDG_CACHE_HOME", ".cache")


def state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder for files that survive a restart: logs, traces, learned figures.

    Where it cannot be made or written to, a folder beside the keeper's socket takes its place, and one
    warning says so.

    Raises:
        ConfigError: neither folder can be made.
    """
    folder = user_folder(STATE_VARIABLE, ".local/state", env)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        why = f"{folder} cannot be written to"
    except OSError as error:
        why = f"{folder}: {error.strerror}"
    return _instead_of_state(runtime_dir(env) / "state", why)


def _instead_of_state(folder: Path, why: str) -> Path:
    hint = f"Set ${STATE_VARIABLE} to a folder of yours."
    make_folder(folder, f"There is no folder for state ({why}), and", hint, STATE_VARIABLE)
    if folder not in _warned:
        _warned.add(folder)
        LOG.warning(
            "logs and what is learned are kept in %s: %s. Set $%s to a folder of yours.",
            folder,
            why,
            STATE_VARIABLE,
        )
    return folder


def log_file() -> Path:
    """Where keepers write their log."""
    return state_dir() / "keeper.log"


def stderr_file() -> Path:
    """The file of a keeper's stderr; at most `STDERR_BYTES` of it are kept."""
    return state_dir() / "keeper.err"


def check_appendable(file: Path) -> Path:
    """The path itself, when lines can be added to what lies there.

    Raises:
        ConfigError: it is no file (a pipe would hold its writer), or not writable.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(file, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(
            f"The keeper cannot write to {file}: {error.strerror}.",
            hint=f"Remove it, or set ${STATE_VARIABLE} to a folder of yours.",
            file=str(file),
            variable=STATE_VARIABLE,
        ) from None
    return file


def lock_dir(env: Mapping[str, str] = os.environ) -> Path | None:
    """The folder of the device locks, where `$KEEPWARM_LOCK_DIR` names one; they need none otherwise.

    Raises:
        ConfigError: it cannot be made.
    """
    given = env.get(LOCK_VARIABLE)
    if not given:
        return None
    hint = f"Unset ${LOCK_VARIABLE}, or set it to a folder that all keepers can use."
    return make_folder(Path(given).absolute(), "The folder of device locks", hint, LOCK_VARIABLE)


def keeper_socket(runtime: Path) -> Path:
    """Where the keeper of a runtime folder listens."""
    return runtime / SOCKET_NAME
