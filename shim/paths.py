"""The folders keepwarm uses, by the rules of the XDG base directories."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from budget.errors import ConfigError

RUNTIME_VARIABLE = "KEEPWARM_RUNTIME_DIR"
LOCK_VARIABLE = "KEEPWARM_LOCK_DIR"
SOCKET_NAME = "keeper.sock"


def runtime_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The private folder of this user's keeper: its socket, its engines' sockets, its lock.

    Made with mode 0700 when missing.

    Raises:
        ConfigError: somebody else owns it, or others may enter it.
    """
    given = env.get(RUNTIME_VARIABLE)
    session = env.get("XDG_RUNTIME_DIR")
    if given:
        folder = Path(given).absolute()
    elif session and Path(session).is_dir() and os.access(session, os.W_OK):
        folder = Path(session) / "keepwarm"
    else:
        folder = Path(tempfile.gettempdir()) / f"keepwarm-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{folder} must be a folder of mode 0700 that belongs to you; found mode "
            f"{stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}.",
            hint=f"Remove it, or set ${RUNTIME_VARIABLE} to a private folder.",
        )
    return folder


def state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder for what survives a restart: logs, traces, learned figures."""
    base = env.get("XDG_STATE_HOME")
    folder = (Path(base) if base else Path.home() / ".local" / "state") / "keepwarm"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def log_file() -> Path:
    """Where keepers write their log."""
    return state_dir() / "keeper.log"


def lock_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder of the machine-wide device locks, which all users share."""
    given = env.get(LOCK_VARIABLE)
    if given:
        folder = Path(given)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
    return Path(tempfile.gettempdir())


def keeper_socket(runtime: Path) -> Path:
    """Where the keeper of a runtime folder listens."""
    return runtime / SOCKET_NAME
