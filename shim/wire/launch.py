"""Starting a keeper in the background, and finding the one that runs."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from backends.machine.callers_errors import raise_callers
from backends.machine.files.descriptors import no_more_files
from backends.machine.files.file_locks import KEEPER_LOCK, FileLock
from backends.machine.files.lock_holders import Holder
from backends.machine.shortages import narrow_limits, refused
from budget.errors import ConfigError, KeeperUnavailable, KeepwarmError, error_from_wire
from shim.config import Config
from shim.paths import (
    STDERR_BYTES,
    check_appendable,
    keeper_socket,
    runtime_places,
    stderr_file,
)
from shim.wire.keeper_connection import KeeperConnection
from shim.wire.silence import CONNECT_S, bound, keeper_silent
from shim.wire.start_order import Order
from shim.wire.threads import BlockingConnection, SocketChannel

START_LIMIT_S: Final = 120.0


def try_connect(runtime: Path) -> socket.socket | None:
    """A connection to the keeper of a runtime folder, or None when none listens.

    Raises:
        KeeperUnavailable: the keeper listens and accepts no connection, so it is stuck.
        QueueFull: this process may open no more files.
    """
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise_callers(error)
        raise no_more_files(error) or error from error
    try:
        sock.settimeout(None)
        bound(sock, socket.SO_SNDTIMEO, CONNECT_S)
        sock.connect(str(keeper_socket(runtime)))
    except BlockingIOError as error:
        sock.close()
        raise_callers(error)
        raise keeper_silent(keeper_pid(runtime), runtime, CONNECT_S) from None
    except OSError as error:
        sock.close()
        raise_callers(error)
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def keeper_pid(runtime: Path) -> int | None:
    """The process id of the keeper of a runtime folder, by its lock; None when that is not known."""
    return FileLock(runtime / KEEPER_LOCK).holder().pid


def running_connection(runtime: Path) -> BlockingConnection | None:
    """A thread's connection to the keeper of a runtime folder, or None when none listens."""
    sock = try_connect(runtime)
    return BlockingConnection(KeeperConnection(SocketChannel(sock))) if sock is not None else None


def connect_or_start(runtime: Path, config: Config) -> socket.socket:
    """A connection to the keeper; it is started when none listens, by one client only.

    A keeper that is about to end is waited for, and the next one started.

    Raises:
        KeeperUnavailable: it did not start in time, or does not respond.
        KeepwarmError: why it refused to start (a `ConfigError`, say).
    """
    sock = try_connect(runtime)
    if sock is not None:
        return sock
    with starting(runtime):
        sock = try_connect(runtime)
        if sock is not None:
            return sock
        try:
            start(runtime, config, automatic=True)
        except (KeeperUnavailable, ConfigError) as error:
            sock = _found_meanwhile(runtime, error)
            if sock is None:
                raise
            return sock
        sock = try_connect(runtime)
    if sock is None:
        raise KeeperUnavailable(
            f"The keeper started and does not listen in {runtime}.",
            hint="See `keepwarm keeper log`.",
        )
    return sock


def _found_meanwhile(runtime: Path, error: KeepwarmError) -> socket.socket | None:
    """A connection to a keeper of this user that started first, here or in another of the user's places."""
    if isinstance(error, KeeperUnavailable):
        return try_connect(runtime)
    holder = error.facts.get("holder")
    folder = holder.get("folder") if isinstance(holder, dict) else None
    places = {str(place) for place in runtime_places()}
    # For a folder that was named on purpose, other places do not count.
    if folder in places and str(runtime) in places:
        return try_connect(Path(str(folder)))
    return None


def start(runtime: Path, config: Config, *, automatic: bool) -> int:
    """Start a keeper in the background and wait until it is ready; returns its process id.

    Call it while `starting` is held.

    Raises:
        KeeperUnavailable: it ended or was not ready in time, or no process could be made.
        KeepwarmError: why it refused to start.
    """
    try:
        return _start(runtime, Order(config, runtime, automatic, config.read_at))
    except (OSError, MemoryError) as error:
        raise_callers(error)
        raise refused(error, "The keeper could not be started") or error from error


def _start(runtime: Path, order: Order) -> int:
    read_fd, write_fd = os.pipe()
    try:
        # In memory: no file is left behind by a client that is killed here.
        with (
            os.fdopen(os.memfd_create("keepwarm-order"), "w+b") as order_file,
            _errors() as errors,
        ):
            order_file.write(order.to_json())
            order_file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-m", "shim.keeper", str(runtime), str(write_fd)],
                stdin=order_file,
                stdout=errors,
                stderr=errors,
                pass_fds=(write_fd,),
                start_new_session=True,
                cwd="/",
            )
        os.close(write_fd)
        write_fd = -1
        return _await_ready(read_fd, process)
    finally:
        os.close(read_fd)
        if write_fd >= 0:
            os.close(write_fd)


def _errors() -> IO[bytes]:
    """The file of the keeper's stderr; one that is too large is put aside."""
    path = stderr_file()
    with contextlib.suppress(OSError):
        if path.stat().st_size > STDERR_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    return check_appendable(path).open("ab")


def _await_ready(fd: int, process: subprocess.Popen[bytes]) -> int:
    said = b""
    until = time.monotonic() + START_LIMIT_S
    while not said.endswith(b"\n"):
        left = until - time.monotonic()
        readable, _, _ = select.select([fd], [], [], max(0.0, left))
        if not readable:
            process.kill()
            process.wait()
            raise KeeperUnavailable(
                f"The keeper was not ready after {START_LIMIT_S:.0f} s.",
                hint="See `keepwarm keeper log`.",
            )
        chunk = os.read(fd, 65536)
        if not chunk:
            code = _ended(process)
            limits = narrow_limits()
            raise KeeperUnavailable(
                f"The keeper ended with code {code} before it was ready.",
                hint="See `keepwarm keeper log`"
                + (f", and the limits here: {limits}." if limits else "."),
            )
        said += chunk
    message = json.loads(said)
    if "error" in message:
        _ended(process)
        raise error_from_wire(message)
    return int(message["ready"])


def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process that has closed its pipe; a process that does not end is killed."""
    try:
        return process.wait(CONNECT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def starting(runtime: Path) -> Iterator[None]:
    """A lock by which one client of a runtime folder starts a keeper at a time; the others wait for it.

    Raises:
        KeeperUnavailable: another client holds the lock for longer than a start can take.
    """
    lock = FileLock(runtime / "start.lock", note=Holder.this_process(runtime))
    if not lock.acquire_within(START_LIMIT_S + CONNECT_S):
        holder = lock.holder()
        raise KeeperUnavailable(
            f"{holder} has been starting the keeper for over {START_LIMIT_S:.0f} s.",
            hint=f"End it: `kill {holder.pid}`." if holder.pid else "",
            pid=holder.pid,
        )
    with lock:
        yield
