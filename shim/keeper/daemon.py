"""The keeper as a process of its own: `python -m shim.keeper`.

Started by the first client that needs it, or on purpose by `keepwarm keeper start`. It says on a
pipe when it is ready, or why it cannot be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import logging.handlers
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from budget.errors import InternalError, KeepwarmError
from shim.config import FOREVER, Config
from shim.keeper.device_locks import DeviceLocks, lock_devices
from shim.keeper.devices import budget_devices
from shim.keeper.holders import Holder
from shim.keeper.keeper import Keeper
from shim.keeper.locks import lock_keeper
from shim.keeper.server import Server
from shim.paths import keeper_socket, lock_dir, log_file

LOG = logging.getLogger("keepwarm.keeper")

LOG_BYTES = 4 * 1024 * 1024
IDLE_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """How a keeper is to run. `automatic`: it leaves after `idle_exit` without a client."""

    config: Config
    runtime: Path
    automatic: bool


async def serve(
    order: Order, ready: asyncio.Event | None = None, stop: asyncio.Event | None = None
) -> None:
    """Run a keeper until `stop` is set, a client asks it to stop, or nobody needs it any more.

    Raises:
        KeeperUnavailable: another keeper runs in this runtime folder.
        ConfigError: the configuration does not hold on this machine.
    """
    stop = stop or asyncio.Event()
    with contextlib.ExitStack() as held:
        held.enter_context(lock_keeper(order.runtime))
        locks = held.enter_context(_device_locks(order))
        locks.answer_on(asyncio.get_running_loop())
        keeper = await Keeper.create(order.config, order.runtime)
        server = Server(keeper, on_stop=stop.set)
        try:
            server.listen(keeper_socket(order.runtime))
            LOG.info("ready on %s", keeper_socket(order.runtime))
            if ready is not None:
                ready.set()
            await _until_over(server, order, stop)
        finally:
            server.close()
            await keeper.close(keep_conversations=True)
            LOG.info("ended")


def _device_locks(order: Order) -> DeviceLocks:
    devices = budget_devices(order.config).devices
    names = [device.uuid or device.name for device in devices]
    return lock_devices(lock_dir(), names, Holder.this_process(order.runtime))


async def _until_over(server: Server, order: Order, stop: asyncio.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), IDLE_LOOK_S)
        idle_exit = server.keeper.config.keeper.idle_exit
        clients = server.clients
        may_leave = order.automatic and not clients.permanent and idle_exit != FOREVER
        if may_leave and not clients.in_use:
            idle_s = time.monotonic() - clients.idle_since
            if idle_s >= idle_exit:
                LOG.info("no client for %.0f s", idle_s)
                return


def read_order(path: Path) -> Order:
    """The order that `shim.keeper.launch` wrote."""
    data = json.loads(path.read_text())
    config = Config.from_mapping(data["config"], label=data["label"])
    config.remember(Path(data["file"]) if data["file"] else None, {})
    return Order(config, Path(data["runtime"]), bool(data["automatic"]))


def set_up_log() -> None:
    """Log to a file that rotates at a few megabytes."""
    handler = logging.handlers.RotatingFileHandler(log_file(), maxBytes=LOG_BYTES, backupCount=1)
    handler.setFormatter(
        logging.Formatter("%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s", "%F %T")
    )
    root = logging.getLogger("keepwarm")
    root.setLevel(logging.INFO)
    root.addHandler(handler)


def main(arguments: list[str]) -> int:
    """`python -m shim.keeper ORDER READY_FD`; returns the exit code."""
    order_file, ready_fd = Path(arguments[0]), int(arguments[1])
    set_up_log()
    try:
        order = read_order(order_file)
        asyncio.run(_main(order, ready_fd))
    except KeepwarmError as error:
        LOG.error("%s", error)
        _say(ready_fd, error.to_wire())
        return 1
    except Exception as error:
        LOG.exception("the keeper failed")
        _say(ready_fd, InternalError(f"the keeper failed: {error!r}").to_wire())
        return 3
    return 0


async def _main(order: Order, ready_fd: int) -> None:
    loop, ready, stop = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)

    async def tell() -> None:
        await ready.wait()
        _say(ready_fd, {"ready": os.getpid()})

    telling = asyncio.create_task(tell())
    try:
        await serve(order, ready, stop)
    finally:
        telling.cancel()


def _say(fd: int, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(message).encode() + b"\n")
        os.close(fd)
