"""Locks on files that end with their holder: one keeper per runtime folder, one per shared folder.

A lock file may lie in a folder that others write to. It is opened without following a link and without
waiting for one end of a pipe, and only a regular file is locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
import weakref
from pathlib import Path
from typing import Final

from backends.foreign.foreign_json import BadJson, parse_json
from backends.machine.files.lock_holders import Holder, user_name
from budget.errors import ConfigError, KeeperUnavailable

KEEPER_LOCK: Final = "keeper.lock"
PRIVATE: Final = 0o600
SHARED: Final = 0o644
"""Others may read the file, which is enough to lock it."""

NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems that have no locks."""

_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MOST_ATTEMPTS: Final = 16
_NOTE_LIMIT_BYTES: Final = 4096
_LOOK_EVERY_S: Final = 0.05
_VANISHES: Final = "it is removed again and again"


class FileLock:
    """An exclusive `flock` on a file; the kernel releases it when the process ends.

    Args:
        path: the file, made when it is missing, and never removed.
        mode: its mode when it is made here, whatever the umask says.
        note: the holder, as written into the file for other processes.
        variable: the environment variable that names another folder; errors name it.
    """

    def __init__(
        self, path: Path, *, mode: int = PRIVATE, note: Holder | None = None, variable: str = ""
    ) -> None:
        self.path = path
        self._mode = mode
        self._note = note or Holder.this_process()
        self._variable = variable
        self._fd: int | None = None
        _ALL.add(self)

    def try_acquire(self) -> bool:
        """Take the lock if no other holder has it; returns whether it is ours now.

        Raises:
            ConfigError: what lies at the path cannot be locked: a link, a pipe, a folder, another
                user's file that we may not read. Fact `errno`: the system's number.
        """
        try:
            fd = self._locked()
        except OSError as error:
            raise self._unusable(error) from None
        if fd is None:
            return False
        self._fd = fd
        self._write_note(fd)
        return True

    def acquire_within(self, limit_s: float) -> bool:
        """As `try_acquire`, again and again for at most `limit_s` while another holder has it."""
        until = time.monotonic() + limit_s
        while not self.try_acquire():
            if time.monotonic() >= until:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def still_there(self) -> bool:
        """Whether the path still leads to the file that is locked."""
        return self._fd is not None and _same_file(self._fd, self.path)

    def holder(self) -> Holder:
        """The holder, as far as the kernel and the file show it."""
        try:
            fd = os.open(self.path, os.O_RDONLY | _FLAGS)
        except OSError:
            return Holder()
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return Holder()
            text = os.read(fd, _NOTE_LIMIT_BYTES)
        except OSError:
            return Holder()
        finally:
            os.close(fd)
        noted = _read_note(text, found.st_uid)
        pid = _pid_of_lock(found.st_ino)
        if pid is None or pid == noted.pid:
            return noted
        # The holder could not write into the file of another user: what it says is of an earlier one.
        return Holder.of_process(pid)

    def release(self) -> None:
        """Give the lock back; idempotent."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.release()

    def _locked(self) -> int | None:
        """The locked file; None when another holder has it."""
        for _ in range(_MOST_ATTEMPTS):
            fd = self._opened()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError:
                os.close(fd)
                raise
            # It may have been removed, and made again by another keeper, since it was opened.
            if _same_file(fd, self.path):
                return fd
            os.close(fd)
        raise FileNotFoundError(errno.ENOENT, _VANISHES, str(self.path))

    def _opened(self) -> int:
        fd = self._open_or_make()
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is not a regular file", str(self.path))
        return fd

    def _open_or_make(self) -> int:
        for _ in range(_MOST_ATTEMPTS):
            try:
                # Never with O_CREAT on a file that is there: in a sticky folder the kernel refuses
                # that for another user's file (fs.protected_regular).
                return os.open(self.path, os.O_RDWR | _FLAGS)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR):
                    raise
                # Another user's file, or a file system that is not written to: reading is enough.
                return os.open(self.path, os.O_RDONLY | _FLAGS)
            with contextlib.suppress(FileExistsError):
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, self._mode)
                with contextlib.suppress(OSError):
                    os.fchmod(fd, self._mode)
                return fd
        raise FileNotFoundError(errno.ENOENT, _VANISHES, str(self.path))

    def _write_note(self, fd: int) -> None:
        found = os.fstat(fd)
        # A hard link that another user made to one of our files is not written to.
        if found.st_uid != os.geteuid() or found.st_nlink != 1:
            return
        text = json.dumps(self._note.as_dict()).encode() + b"\n"
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, text, 0)

    def _unusable(self, error: OSError) -> ConfigError:
        owner = ""
        with contextlib.suppress(OSError):
            owner = f" It belongs to {user_name(self.path.lstat().st_uid)}."
        elsewhere = f", or name another folder with ${self._variable}" if self._variable else ""
        return ConfigError(
            f"The lock file {self.path} cannot be used: {error.strerror or error}.{owner}",
            hint=f"Remove it{elsewhere}.",
            path=str(self.path),
            folder=str(self.path.parent),
            errno=error.errno,
        )


_ALL: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_after_fork() -> None:
    # Without this, a forked child would hold its parent's locks until it ends.
    for lock in list(_ALL):
        lock.release()


os.register_at_fork(after_in_child=_release_after_fork)


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file; False when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def lock_keeper(runtime: Path) -> FileLock:
    """The lock of the one keeper of a runtime folder.

    Raises:
        KeeperUnavailable: another keeper has it.
        ConfigError: the lock file cannot be used.
    """
    lock = FileLock(runtime / KEEPER_LOCK, note=Holder.this_process(runtime))
    if not lock.try_acquire():
        holder = lock.holder()
        raise KeeperUnavailable(
            f"A keeper runs already in {runtime} ({holder}).",
            hint=f"Use it, or end it: {holder.end_command() or '`keepwarm keeper stop`'}.",
            pid=holder.pid,
            folder=str(runtime),
        )
    return lock


def _same_file(fd: int, path: Path) -> bool:
    try:
        here, there = os.fstat(fd), path.lstat()
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _read_note(text: bytes, owner: int) -> Holder:
    try:
        return Holder.from_dict(parse_json(text), owner)
    except (BadJson, TypeError, ValueError, KeyError):
        return Holder()


def _pid_of_lock(inode: int) -> int | None:
    """The process that holds a `flock`, by `/proc/locks`; None where it is not listed."""
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        # "1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF"; those that wait have "->" in between.
        if len(fields) < 6 or fields[1] != "FLOCK" or fields[3] != "WRITE":
            continue
        if fields[5].rpartition(":")[2] == str(inode) and fields[4].isdecimal():
            return int(fields[4]) or None
    return None
