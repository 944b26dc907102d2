"""The keeper as a process of its own: `python -m shim.keeper RUNTIME READY_FD`, its order on stdin.

The first client that needs it starts it, or a user with `keepwarm keeper start`. It reports on a pipe
when it is ready, or why it cannot run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

from backends.machine.files.descriptors import raise_descriptor_limit
from backends.machine.files.file_locks import FileLock, lock_keeper
from backends.machine.files.lock_holders import Holder
from backends.machine.shortages import refused
from budget.errors import ConfigError, InternalError, KeeperUnavailable, KeepwarmError
from shim.config import FOREVER
from shim.keeper.catalog.projects import Projects
from shim.keeper.keeper import Keeper
from shim.keeper.process.closing import end_process_within
from shim.keeper.process.device_locks import lock_budgeted
from shim.keeper.process.log_lines import KeeperLog
from shim.keeper.process.ready_threads import ReadyThreads
from shim.keeper.process.socket_watch import LOOK_EVERY_S, Reachable
from shim.keeper.server.server import Server
from shim.paths import check_appendable, keeper_socket, log_file
from shim.wire.launch import try_connect
from shim.wire.start_order import InForce, Order

LOG = logging.getLogger("keepwarm.keeper")

IDLE_LOOK_S: Final = 1.0
END_LIMIT_S: Final = 60.0
"""How long a keeper that starts waits for the one before it to end, which saves conversations first."""
THREADS_LIMIT_S: Final = 10.0
"""After its end a keeper waits no longer than this for threads that read a disk or ask a driver."""

_LOCK_LOOK_S: Final = 0.05
_OLD_ORDER: Final = re.compile(r"order-\d+-\d+\.json")


async def serve(
    order: Order,
    ready: asyncio.Event | None = None,
    stop: asyncio.Event | None = None,
    log: KeeperLog | None = None,
) -> None:
    """Run a keeper until `stop` is set, a client asks it to stop, or no client needed it for `idle_exit`.

    Raises:
        KeeperUnavailable: another keeper runs in this runtime folder.
        ConfigError: the configuration is impossible on this machine.
    """
    stop = stop or asyncio.Event()
    with contextlib.ExitStack() as held:
        place = Place(order.runtime, await _alone(order.runtime))
        held.callback(place.release)
        order = place.in_force.survives(order)
        note = Holder.this_process(order.runtime)
        locks = held.enter_context(lock_budgeted(order.config, note))
        locks.answer_on(asyncio.get_running_loop())
        async with _running(order, place, stop) as server:
            place.watch(server, stop)
            if log is not None:
                server.keeper.background.every("tidying the log", log.PERIOD_S, log.tidy)
            if ready is not None:
                ready.set()
            await _until_over(server, order, stop)
            place.in_force.remove()


class Place:
    """A keeper's files in its folder: the lock, and the configuration that is in force."""

    def __init__(self, runtime: Path, lock: FileLock) -> None:
        self.in_force = InForce(runtime)
        self._runtime = runtime
        self._lock = lock
        self._reachable: Reachable | None = None
        # Earlier versions left an order here; it comes on stdin now.
        for left in runtime.glob("order-*.json"):
            with contextlib.suppress(OSError):
                if _OLD_ORDER.fullmatch(left.name):
                    left.unlink()

    def watch(self, server: Server, stop: asyncio.Event) -> None:
        """Watch that clients can find the keeper, and that its configuration survives a crash."""
        keeper = server.keeper
        keeper.changes.on_change = lambda projects: self.in_force.write(*projects.left())
        self.in_force.write(*keeper.changes.projects.left())
        self._reachable = Reachable(
            self._runtime,
            server,
            self._lock,
            restored=lambda: self.in_force.write(*keeper.changes.projects.left()),
            give_up=stop.set,
        )
        keeper.background.every("staying reachable", LOOK_EVERY_S, self._reachable.look)

    def release(self) -> None:
        """Release the folder to the next keeper."""
        lock = self._lock if self._reachable is None else self._reachable.lock
        if lock is not None:
            lock.release()


@contextlib.asynccontextmanager
async def _running(order: Order, place: Place, stop: asyncio.Event) -> AsyncIterator[Server]:
    """A keeper that listens. At its end it first stops accepting clients, so that they start the next."""
    try:
        keeper = await Keeper.create(order.config, order.runtime, projects=_projects(order))
    except KeepwarmError:
        # A configuration that cannot run must not be used again by the next keeper.
        place.in_force.remove()
        raise
    server = Server(keeper, stop)
    try:
        server.listen(keeper_socket(order.runtime))
        LOG.info("ready on %s", keeper_socket(order.runtime))
        yield server
    finally:
        server.close()
        await keeper.close(keep_conversations=True)
        LOG.info("ended")


def _projects(order: Order) -> Projects:
    """The projects of an order, without those of a keeper that crashed where they do not hold here."""
    first = Projects.of(order.config)
    try:
        return first.with_left(order.others)
    except ConfigError as error:
        LOG.warning("the other projects of the keeper that crashed are not taken over: %s", error)
        return first


async def _alone(runtime: Path) -> FileLock:
    """The lock of the folder's one keeper, once the keeper before has ended.

    Raises:
        KeeperUnavailable: another keeper runs, or does not end.
    """
    until = time.monotonic() + END_LIMIT_S
    while True:
        try:
            return lock_keeper(runtime)
        except KeeperUnavailable:
            # A keeper that is about to end accepts no client.
            if time.monotonic() >= until or _listens(runtime):
                raise
        await asyncio.sleep(_LOCK_LOOK_S)


def _listens(runtime: Path) -> bool:
    sock = try_connect(runtime)
    if sock is not None:
        sock.close()
    return sock is not None


async def _until_over(server: Server, order: Order, stop: asyncio.Event) -> None:
    async def look() -> None:
        idle_exit = server.keeper.config.keeper.idle_exit
        clients = server.clients
        may_leave = order.automatic and not clients.permanent and idle_exit != FOREVER
        if may_leave and not clients.in_use:
            idle_s = time.monotonic() - clients.idle_since
            if idle_s >= idle_exit:
                LOG.info("no client for %.0f s", idle_s)
                stop.set()

    server.keeper.background.every("leaving when no client is left", IDLE_LOOK_S, look)
    await stop.wait()


def main(arguments: list[str]) -> int:
    """`python -m shim.keeper RUNTIME READY_FD`; returns the exit code."""
    runtime, ready_fd = Path(arguments[0]), int(arguments[1])
    with _reported(ready_fd) as failed:
        log = KeeperLog(check_appendable(log_file()))
        order = Order.from_json(_read_stdin(), runtime)
        # Engines inherit the limit, and need it because every request is a connection of an engine.
        raise_descriptor_limit()
        asyncio.run(_main(order, ready_fd, log))
    return failed[0] if failed else 0


@contextlib.contextmanager
def _reported(ready_fd: int) -> Iterator[list[int]]:
    """Log whatever ends the block and report it to the client; the list gets the exit code."""
    failed: list[int] = []
    try:
        yield failed
    except KeepwarmError as error:
        LOG.error("%s", error)
        _say(ready_fd, error.to_wire())
        failed.append(1)
    except Exception as error:
        LOG.exception("the keeper cannot run")
        short = refused(error, "The keeper cannot run")
        failure = short or InternalError(f"the keeper failed: {error!r}")
        _say(ready_fd, failure.to_wire())
        failed.append(1 if short else 3)


def _read_stdin() -> bytes:
    data = sys.stdin.buffer.read()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return data


async def _main(order: Order, ready_fd: int, log: KeeperLog) -> None:
    loop, ready, stop = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.set_default_executor(ReadyThreads())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)

    async def tell() -> None:
        await ready.wait()
        _say(ready_fd, {"ready": os.getpid()})

    telling = asyncio.create_task(tell())
    try:
        await serve(order, ready, stop, log)
    finally:
        telling.cancel()
        end_process_within(THREADS_LIMIT_S)


def _say(fd: int, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)
