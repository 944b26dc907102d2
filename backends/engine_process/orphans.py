"""Ends the engines that a dead keeper left behind, and no other process.

The parent-death signal ends engines with their keeper, except in the moment between a fork and the arming
of that signal; this covers that moment. A process counts as ours only if it runs as this user and its
environment names this runtime folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backends.engine_process.process import SOCKET_NAME_BYTES
from backends.machine.environment import OWNER_VARIABLE
from backends.machine.processes import all_pids, has_variable, user_of

_LOOKS_WITHOUT: Final = 2
"""So many looks in a row have to find nothing."""
_END_LIMIT_S: Final = 2.0
_NAME: Final = re.compile(rf"e-[0-9a-f]{{{SOCKET_NAME_BYTES}}}\.(sock|slots|key)")


def leftovers(runtime_dir: Path) -> list[int]:
    """The process numbers of engines that belong to this runtime folder, this process excepted."""
    return marked(f"{OWNER_VARIABLE}={runtime_dir.resolve()}")


def marked(marker: str) -> list[int]:
    """This user's processes whose environment has a marker, this process excepted."""
    return [pid for pid in all_pids() if pid != os.getpid() and _is_ours(pid, marker)]


def sweep_leftovers(runtime_dir: Path) -> list[int]:
    """Kill every leftover engine of this runtime folder, remove what engines made; returns the pids.

    Only sockets, keys and folders with names of engines are removed, because the user may have
    named the folder.

    Call it only while holding the keeper's lock on the folder, because a running keeper's engines carry
    the same mark. Each process is held by a pidfd and checked again before the signal, so a reused
    process number is never hit.
    """
    marker = f"{OWNER_VARIABLE}={runtime_dir.resolve()}"
    ended = [pid for pid in leftovers(runtime_dir) if _kill(pid, marker)]
    with os.scandir(runtime_dir) as entries:
        found = [entry for entry in entries if is_engines(entry.name)]
    for entry in found:
        if entry.name.endswith(".slots"):
            # Never through a link. A plain file of that name is not ours.
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
        else:
            _remove(Path(entry.path))
    return ended


def is_engines(name: str) -> bool:
    """Whether a file of a runtime folder was made for an engine, by its name."""
    return _NAME.fullmatch(name) is not None


def end_marked(marker: str) -> None:
    """Kill every process of this user whose environment has a marker, as an engine's children have.

    One that is forked while this looks, by a process that is killed later, is found by a further look.
    """
    until_s, looks_without = time.monotonic() + _END_LIMIT_S, 0
    while looks_without < _LOOKS_WITHOUT and time.monotonic() < until_s:
        ended = [pid for pid in marked(marker) if _kill(pid, marker)]
        looks_without = 0 if ended else looks_without + 1


def _remove(path: Path) -> None:
    """Remove a socket, or a file with a key."""
    expected = stat.S_ISREG if path.suffix == ".key" else stat.S_ISSOCK
    with contextlib.suppress(OSError):
        if expected(path.stat(follow_symlinks=False).st_mode):
            path.unlink()


def _is_ours(pid: int, marker: str) -> bool:
    return user_of(pid) == os.getuid() and has_variable(pid, marker)


def _kill(pid: int, marker: str) -> bool:
    return send_kill(pid, lambda pid: _is_ours(pid, marker))


def send_kill(pid: int, is_it: Callable[[int], bool]) -> bool:
    """Kill a process that still is the one that was meant; returns whether it was."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_it(pid):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
