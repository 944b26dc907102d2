"""Starting a keeper in the background, and finding the one that runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from budget.errors import KeeperUnavailable, error_from_wire
from shim.config import Config
from shim.line import Line
from shim.paths import keeper_socket, state_dir
from shim.silence import CONNECT_S, bound, keeper_silent
from shim.sync_line import KeeperLine, SocketChannel

START_LIMIT_S = 120.0


def try_connect(runtime: Path) -> socket.socket | None:
    """A connection to the keeper of a runtime folder, or None when none listens.

    Raises:
        KeeperUnavailable: it listens and takes no connection, so it does not run.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(None)
        bound(sock, socket.SO_SNDTIMEO, CONNECT_S)
        sock.connect(str(keeper_socket(runtime)))
    except BlockingIOError:
        sock.close()
        raise keeper_silent(keeper_pid(runtime), runtime, CONNECT_S) from None
    except OSError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def keeper_pid(runtime: Path) -> int | None:
    """The process of the keeper of a runtime folder, as far as its lock's file tells."""
    try:
        return int((runtime / "keeper.lock").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def running_line(runtime: Path) -> KeeperLine | None:
    """A thread's connection to the keeper of a runtime folder, or None when none listens."""
    sock = try_connect(runtime)
    return KeeperLine(Line(SocketChannel(sock))) if sock is not None else None


def connect_or_start(runtime: Path, config: Config) -> socket.socket:
    """A connection to the keeper; it is started when none listens, by one client only.

    Raises:
        KeeperUnavailable: it did not start in time.
        KeepwarmError: why it refused to start (a `ConfigError`, say).
    """
    sock = try_connect(runtime)
    if sock is not None:
        return sock
    with _starting(runtime):
        sock = try_connect(runtime)
        if sock is not None:
            return sock
        start(runtime, config, automatic=True)
        sock = try_connect(runtime)
    if sock is None:
        raise KeeperUnavailable(
            f"The keeper started and does not listen in {runtime}.",
            hint="See `keepwarm keeper log`.",
        )
    return sock


def start(runtime: Path, config: Config, *, automatic: bool) -> int:
    """Start a keeper in the background and wait until it is ready; returns its process id.

    Raises:
        KeeperUnavailable: it ended or was not ready in time.
        KeepwarmError: why it refused to start.
    """
    order = runtime / f"order-{os.getpid()}-{time.monotonic_ns()}.json"
    order.write_text(
        json.dumps(
            {
                "config": config.to_mapping(),
                "label": str(config.file or "the configuration given in code"),
                "file": str(config.file) if config.file else None,
                "runtime": str(runtime),
                "automatic": automatic,
            }
        )
    )
    read_fd, write_fd = os.pipe()
    try:
        with (state_dir() / "keeper.err").open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "shim.keeper", str(order), str(write_fd)],
                stdin=subprocess.DEVNULL,
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
        order.unlink(missing_ok=True)


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
            code = process.wait()
            raise KeeperUnavailable(
                f"The keeper ended with code {code} before it was ready.",
                hint="See `keepwarm keeper log`.",
            )
        said += chunk
    message = json.loads(said)
    if "error" in message:
        process.wait()
        raise error_from_wire(message)
    return int(message["ready"])


@contextlib.contextmanager
def _starting(runtime: Path) -> Iterator[None]:
    """Only one client of a runtime folder starts a keeper at a time; the others wait for it."""
    fd = os.open(runtime / "start.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
