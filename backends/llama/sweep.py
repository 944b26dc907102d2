"""Ending what a keeper that died left behind, and nothing else.

The parent-death signal ends engines with their keeper; this is the second net, for the moment
between a fork and that signal's arming. A process counts as ours only when it runs as this user and
its environment names this very runtime folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

from backends.llama.process import OWNER_VARIABLE


def leftovers(runtime_dir: Path) -> list[int]:
    """The process numbers of engines that belong to this runtime folder, this process excepted."""
    marker = f"{OWNER_VARIABLE}={runtime_dir.resolve()}".encode()
    return [pid for pid in _processes() if _is_ours(pid, marker)]


def sweep_leftovers(runtime_dir: Path) -> list[int]:
    """Kill every leftover engine of this runtime folder and remove their sockets; returns the pids.

    Call it only while holding the keeper's lock on the folder: a live keeper's engines carry the
    same mark. Each process is held by a pidfd and checked again through it before the signal, so a
    reused process number is never hit.
    """
    marker = f"{OWNER_VARIABLE}={runtime_dir.resolve()}".encode()
    ended = [pid for pid in leftovers(runtime_dir) if _kill(pid, marker)]
    for socket_path in runtime_dir.glob("e-*.sock"):
        with contextlib.suppress(OSError):
            socket_path.unlink()
    for folder in runtime_dir.glob("e-*.slots"):
        shutil.rmtree(folder, ignore_errors=True)
    return ended


def _processes() -> list[int]:
    own = os.getpid()
    try:
        entries = os.listdir("/proc")  # noqa: PTH208
    except OSError:
        return []
    return [int(name) for name in entries if name.isdigit() and int(name) != own]


def _is_ours(pid: int, marker: bytes) -> bool:
    folder = Path("/proc") / str(pid)
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        return marker in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _kill(pid: int, marker: bytes) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _is_ours(pid, marker):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
