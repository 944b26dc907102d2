"""Folders: where a user's files go, which folders are private, and whether sockets fit in them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from backends.machine.files.lock_holders import user_name
from budget.errors import ConfigError

LOG = logging.getLogger("keepwarm.paths")

RUNTIME_VARIABLE: Final = "KEEPWARM_RUNTIME_DIR"
"""The environment variable that names a keeper's folder, in which its engines' sockets are, too."""
SOCKET_PATH_BYTES: Final = 107
"""The longest path of a Unix socket."""


def home_of(uid: int) -> Path | None:
    """The user's home by the password database; None where it has none that is there."""
    try:
        home = Path(pwd.getpwuid(uid).pw_dir)
    except (KeyError, OverflowError):
        return None
    return home if home.is_absolute() and home.is_dir() else None


def user_folder(variable: str, otherwise: str, env: Mapping[str, str] = os.environ) -> Path:
    """Keepwarm's folder below an XDG base directory: `$variable/keepwarm` or `~/otherwise/keepwarm`.

    A variable with a relative path counts as not set: the standard says so, and the folder would be
    another one in each working folder. One warning says so. A user without a home gets a folder below
    `/`, which cannot be written: what goes there is then not kept.
    """
    home = Path(env.get("HOME", ""))
    if not home.is_absolute():
        home = home_of(os.getuid()) or Path("/")
    given = env.get(variable, "")
    base = Path(given)
    if base.parts[:1] == ("~",):
        base = home.joinpath(*base.parts[1:])
    if base.is_absolute():
        return base / "keepwarm"
    if given:
        _warn_relative(variable, given)
    return home / otherwise / "keepwarm"


@functools.cache
def _warn_relative(variable: str, given: str) -> None:
    LOG.warning("$%s is %s, which is no absolute path, so it counts as not set.", variable, given)


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is removed with all that is in it when the block ends.

    Raises:
        ConfigError: there is no folder for temporary files that can be written.
    """
    try:
        made = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as error:
        raise ConfigError(
            f"A folder for temporary files cannot be made: {error.strerror}.",
            hint="Set $TMPDIR to a folder of yours with a short path.",
            variable="TMPDIR",
        ) from None
    with made as name:
        yield Path(name)


def make_folder(folder: Path, what: str, hint: str, variable: str = "") -> Path:
    """A folder of mode 0700, made with those around it when it is missing.

    Args:
        folder: its path.
        what: what it is for, as the beginning of a sentence.
        hint: what to do where it cannot be made.
        variable: the environment variable that names it.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{what} {folder} cannot be made: {error.strerror}.",
            hint=hint,
            folder=str(folder),
            variable=variable,
        ) from None
    return folder


def private_folder(folder: Path, setting: str = f"${RUNTIME_VARIABLE}") -> Path:
    """A folder that this user alone can enter, made when it is missing; returns it resolved.

    Raises:
        ConfigError: it cannot be made, is not ours, or others may enter it.
    """
    hint = f"Set {setting} to a folder of yours that can be written."
    made = make_folder(folder, "The folder", hint).resolve()
    check_private(made, setting)
    return made


def is_private(folder: Path) -> bool:
    """Whether a path is a folder, and no link to one, that this user alone can enter."""
    try:
        found = folder.stat(follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def check_private(folder: Path, setting: str = f"${RUNTIME_VARIABLE}") -> None:
    """Nothing, where `is_private` holds.

    Raises:
        ConfigError: it does not. The hint names `setting`, by which the folder was chosen.
        OSError: the folder is not there.
    """
    if not is_private(folder):
        found = folder.stat(follow_symlinks=False)
        raise ConfigError(
            f"{folder} must be a folder of mode 0700 that belongs to you; found mode "
            f"{stat.S_IMODE(found.st_mode):04o}, owner {user_name(found.st_uid)}.",
            hint=f"Run `chmod 700 {folder}` or remove it, or set {setting} to a private folder.",
            folder=str(folder),
            variable=setting.removeprefix("$"),
        )


def fits_sockets(path: Path) -> bool:
    """Whether a Unix socket can have this path."""
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES


def check_socket_path(path: Path) -> Path:
    """The path itself, when a Unix socket can have it.

    Raises:
        ConfigError: it is longer than 107 bytes. Facts: `folder`, `variable`, `length`, `limit`.
    """
    if not fits_sockets(path):
        folder, length = path.parent, len(os.fsencode(path))
        raise ConfigError(
            f"{folder} is too long for the sockets in it: {length} bytes, and a Unix socket's path has "
            f"at most {SOCKET_PATH_BYTES}.",
            hint=f"Set ${RUNTIME_VARIABLE} to a folder whose path has at most "
            f"{SOCKET_PATH_BYTES - length + len(os.fsencode(folder))} bytes.",
            folder=str(folder),
            variable=RUNTIME_VARIABLE,
            length=length,
            limit=SOCKET_PATH_BYTES,
        )
    return path


def remove_own_socket(path: Path) -> os.stat_result | None:
    """Remove the socket that an earlier program of this user left; returns what else lies there."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        return found
    path.unlink()
    return None


@contextlib.contextmanager
def sockets_are_private() -> Iterator[None]:
    """A Unix socket that is bound meanwhile gets mode 0600."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
