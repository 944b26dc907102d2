"""How long a client waits for a sign of life of the keeper, and the errors when none comes.

While an op waits for its answer, the keeper sends `alive` every 2 s, however long the op takes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Final

from backends.machine.files.file_locks import KEEPER_LOCK, FileLock, is_held
from backends.machine.peers import peer_credentials
from backends.machine.processes import has_all_files_it_may, is_stopped
from budget.errors import Cancelled, InvalidRequest, KeeperUnavailable

SILENCE_S: Final = 10.0
LOOK_S: Final = 5.0
"""The bound for ops that the keeper answers from its books alone."""
CONNECT_S: Final = 5.0
EXPLAIN_S: Final = 10.0
"""The longest wait for an explanation of a failure, even while the keeper sends `alive`."""
LOOKING: Final = frozenset({"hello", "status"})
"""Ops that are given up after `LOOK_S` without any message of the keeper; others after `SILENCE_S`."""
_TIMEVAL: Final = "ll"


def bound(sock: socket.socket, option: int, seconds: float) -> None:
    """Bound each wait of a blocking socket (`SO_RCVTIMEO`, `SO_SNDTIMEO`), at no cost a call."""
    timeval = struct.pack(_TIMEVAL, int(seconds), int(seconds % 1 * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, option, timeval)


def peer_of(sock: socket.socket) -> tuple[int | None, Path | None]:
    """The process at the other end of a connection to a keeper, and the keeper's folder."""
    pid, folder = 0, None
    with contextlib.suppress(OSError):
        pid, _ = peer_credentials(sock)
        path = sock.getpeername()
        folder = Path(path).parent if path and isinstance(path, str) else None
    return (pid if pid > 0 else None), folder


def keeper_silent(pid: int | None, runtime: Path | None, waited_s: float) -> KeeperUnavailable:
    """The error when the keeper (or its process) exists and does not answer."""
    process = f"process {pid}" if pid else "its process is not known"
    where = f" in {runtime}" if runtime else ""
    what = "The keeper"
    if pid is None:
        hint = "`keepwarm keeper log` says what it did last."
    elif runtime is not None and not holds_keeper_lock(pid, runtime):
        what = "What listens as a keeper"
        hint = (
            "It holds no keeper's lock: it is a keeper inside a program, or none. See what it is."
        )
    elif is_stopped(pid):
        hint = f"It is stopped: `kill -CONT {pid}` lets it go on."
    elif has_all_files_it_may(pid):
        hint = (
            "It has as many open files as it may have, and goes on when connections to it close: end "
            "programs that hold many, or raise the limit (`ulimit -n`) before the keeper starts."
        )
    else:
        hint = (
            f"`keepwarm keeper log` says what it did last; `kill -9 {pid}` ends it and its engines."
        )
    return KeeperUnavailable(
        f"{what}{where} ({process}) does not respond: not a word for {waited_s:.0f} s.",
        hint=hint,
        pid=pid,
        runtime=str(runtime) if runtime else None,
        waited_s=waited_s,
    )


def holds_keeper_lock(pid: int, runtime: Path) -> bool:
    """Whether a process is the background keeper of a folder. Only then may an error suggest to kill it."""
    path = runtime / KEEPER_LOCK
    return is_held(path) and FileLock(path).holder().pid == pid


def closed_before() -> InvalidRequest:
    """The error of a call of a closed `Shim`."""
    return InvalidRequest("This Shim is closed.", hint="Make a new one.")


def closed_meanwhile() -> Cancelled:
    """The error of a call that ran when its `Shim` was closed."""
    return Cancelled("The Shim was closed while this call ran.")
