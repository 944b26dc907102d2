"""One keeper per device of the machine, for all users and sessions together.

A device's lock is the name of an abstract Unix socket. The kernel gives it to one process, takes it back
when that process ends, and shows the holder to other processes. It lies in no folder, so environment
variables, cleaners, modes, links and other users' files have no effect on it (docs/decisions/0012).
`$KEEPWARM_LOCK_DIR` puts lock files into a folder instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import logging
import os
import socket
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from backends.foreign.foreign_json import BadJson, parse_json
from backends.machine.files.file_locks import SHARED, FileLock, is_held
from backends.machine.files.lock_holders import Holder
from backends.machine.peers import peer_credentials
from budget.errors import ConfigError, KeepwarmError
from shim.config import Config
from shim.paths import LOCK_VARIABLE, lock_dir
from shim.placement.budgeted_devices import budget_devices

LOG = logging.getLogger("keepwarm.keeper")

ANSWER_LIMIT_S: Final = 0.5
"""The longest wait for a holder's answer. A stopped holder does not answer; the kernel still knows it."""

_BACKLOG: Final = 64
_ANSWER_BYTES: Final = 4096
_LONGEST_NAME: Final = 80


class DeviceLock(Protocol):
    """The lock of one device."""

    def try_acquire(self) -> bool:
        """Take the lock if no other holder has it; returns whether it is ours now."""
        ...

    def holder(self) -> Holder:
        """The process that holds it, as far as it is known."""
        ...

    def release(self) -> None:
        """Give it back; idempotent."""
        ...


class NameLock:
    """A lock by a socket name of this machine (of its network namespace), without a file."""

    def __init__(self, name: str, note: Holder) -> None:
        self._address = f"\0keepwarm/{name}"
        self._note = note
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        _ALL.add(self)

    def try_acquire(self) -> bool:
        """Take the name if no other process has it; returns whether it is ours now.

        Raises:
            ConfigError: this process may not have such a socket.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(self._address)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                return False
            raise ConfigError(
                f"The lock of {self._address[1:]} cannot be taken: {error.strerror}.",
                hint=f"${LOCK_VARIABLE} puts lock files into a folder instead.",
            ) from None
        sock.settimeout(0.0)
        self._socket = sock
        return True

    def answer_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on, answer questions of other processes about the folder that the holder works in."""
        if self._socket is not None:
            self._loop = loop
            loop.add_reader(self._socket, self._answer)

    def _answer(self) -> None:
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            asking, _ = self._socket.accept()
            with asking:
                asking.settimeout(0.0)
                asking.send(json.dumps(self._note.as_dict()).encode())

    def holder(self) -> Holder:
        """The holder: its process and user from the kernel, the rest from its answer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_LIMIT_S)
            try:
                sock.connect(self._address)
                pid, uid = peer_credentials(sock)
            except OSError:
                return Holder()
            known = Holder(pid or None, uid)
            try:
                return Holder.from_dict(parse_json(sock.recv(_ANSWER_BYTES)), uid, pid)
            except (OSError, BadJson, KeyError, TypeError, ValueError):
                return known

    def release(self) -> None:
        """Give the name back; idempotent. After `answer_on`, call it on that loop or after its end."""
        if self._socket is None:
            return
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
        self.forget()

    def forget(self) -> None:
        """Close this process's copy of the socket only."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


_ALL: weakref.WeakSet[NameLock] = weakref.WeakSet()


def _forget_after_fork() -> None:
    # Without this, a forked child would hold the device until it ends.
    for lock in list(_ALL):
        lock.forget()


os.register_at_fork(after_in_child=_forget_after_fork)


class DeviceLocks:
    """The locks of all devices of one keeper."""

    def __init__(self, locks: Sequence[DeviceLock]) -> None:
        self._locks = list(locks)

    def answer_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer refused keepers' questions about the holder of their device."""
        for lock in self._locks:
            if isinstance(lock, NameLock):
                lock.answer_on(loop)

    def release(self) -> None:
        """Give all back; idempotent."""
        for lock in self._locks:
            lock.release()

    def __enter__(self) -> DeviceLocks:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.release()


def lock_devices(folder: Path | None, devices: Sequence[str], note: Holder) -> DeviceLocks:
    """The machine-wide locks of devices, all or none.

    Args:
        folder: the folder for lock files instead; the same for all keepers of these devices.
        devices: stable names (a GPU's UUID, the host's).
        note: the holder as refused keepers see it.

    Raises:
        ConfigError: another keeper books one of these devices, or a lock file cannot be used.
    """
    taken: list[DeviceLock] = []
    try:
        for device in dict.fromkeys(devices):
            lock = _lock_of(folder, device, note)
            if not lock.try_acquire():
                raise _busy(device, lock.holder())
            taken.append(lock)
    except KeepwarmError:
        DeviceLocks(taken).release()
        raise
    return DeviceLocks(taken)


def lock_budgeted(config: Config, note: Holder) -> DeviceLocks:
    """The locks of the devices that a configuration budgets.

    Raises:
        ConfigError: another keeper books one of them, or a device does not exist.
    """
    devices = budget_devices(config).devices
    return lock_devices(lock_dir(), [device.uuid or device.name for device in devices], note)


def device_holders(config: Config) -> dict[str, Holder]:
    """The keeper that books each device of a configuration now; free devices are left out.

    No lock is taken for that.

    Raises:
        ConfigError: a device is not there, or there is no folder for locks.
    """
    found = {}
    for device in budget_devices(config).devices:
        lock = _lock_of(lock_dir(), device.uuid or device.name, Holder.this_process())
        holder = lock.holder()
        held = is_held(lock.path) if isinstance(lock, FileLock) else holder.uid is not None
        if held:
            found[device.name] = holder
    return found


def say_shared(config: Config, note: Holder) -> None:
    """Log one warning if another keeper books the devices that are booked here without locks.

    Raises:
        ConfigError: a device is not there, or a lock file cannot be used.
    """
    try:
        lock_budgeted(config, note).release()
    except ConfigError as error:
        if "holder" not in error.facts:
            raise
        LOG.warning(
            "%s This keeper books its bytes, too (share=True): neither knows of the other's engines, "
            "so both limits together have to fit the device.",
            error.message,
        )


def _lock_of(folder: Path | None, device: str, note: Holder) -> DeviceLock:
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in device)
    if len(name) > _LONGEST_NAME or name != device:
        digest = hashlib.sha256(device.encode()).hexdigest()[:12]
        name = f"{name[: _LONGEST_NAME - 13]}-{digest}"
    if folder is None:
        return NameLock(f"device/{name}", note)
    path = folder / f"keepwarm-device-{name}.lock"
    return FileLock(path, mode=SHARED, note=note, variable=LOCK_VARIABLE)


def _busy(device: str, holder: Holder) -> ConfigError:
    end = holder.end_command()
    instead = f"End that one{f' with {end}' if end else ''}, or choose another [budget] device."
    if holder.pid == os.getpid():
        instead = "It is of this program: use its Shim for all models, or close that one first."
    return ConfigError(
        f"Device {device} is booked by another keeper ({holder}).",
        hint=f"Two keepers would book the same bytes twice. {instead} An inline keeper of "
        "Shim(..., share=True) books beside it all the same.",
        device=device,
        holder={**holder.as_dict(), "command": end.strip("`")},
    )
