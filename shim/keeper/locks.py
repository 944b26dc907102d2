"""Locks that end with their holder: one keeper per runtime folder, one per device of the machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from budget.errors import ConfigError, KeeperUnavailable, KeepwarmError


class FileLock:
    """An exclusive `flock` on a file; the kernel releases it when the process ends."""

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self._path = path
        self._mode = mode
        self._fd: int | None = None

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; returns whether it is ours now."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._path, flags, self._mode)
        except PermissionError:
            # Another user's file: reading is enough to lock it.
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._fd = fd
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()} {os.getuid()}\n".encode())
        return True

    def holder(self) -> str:
        """Who holds it, as far as the file tells."""
        try:
            pid, _, uid = self._path.read_text().strip().partition(" ")
        except OSError:
            return "another process"
        return f"process {pid} of user {uid}" if pid else "another process"

    def release(self) -> None:
        """Give the lock back; idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.release()


def lock_keeper(runtime: Path) -> FileLock:
    """The lock of the one keeper of a runtime folder.

    Raises:
        KeeperUnavailable: another keeper has it.
    """
    lock = FileLock(runtime / "keeper.lock")
    if not lock.try_acquire():
        raise KeeperUnavailable(
            f"A keeper runs already in {runtime} ({lock.holder()}).",
            hint="Use it, or stop it with `keepwarm keeper stop`.",
        )
    return lock


def lock_devices(folder: Path, devices: list[str]) -> list[FileLock]:
    """The machine-wide locks of devices, all or none.

    Args:
        folder: shared by all users of the machine.
        devices: stable names (a GPU's UUID, `host`).

    Raises:
        ConfigError: another keeper books one of these devices.
    """
    taken: list[FileLock] = []
    try:
        for device in devices:
            name = "".join(c if c.isalnum() or c in "-_" else "-" for c in device)
            lock = FileLock(folder / f"keepwarm-device-{name}.lock", mode=0o666)
            if not lock.try_acquire():
                raise _busy(device, lock)
            taken.append(lock)
    except (KeepwarmError, OSError):
        for lock in taken:
            lock.release()
        raise
    return taken


def _busy(device: str, lock: FileLock) -> ConfigError:
    return ConfigError(
        f"Device {device} is booked by another keeper ({lock.holder()}).",
        hint="Two keepers would book the same bytes twice: stop that one, or choose another "
        "[budget] device.",
        device=device,
    )
