"""A keeper inside the caller's process, on a thread of its own: for tests and embedding.

It runs the same code as the background keeper, behind the same kind of socket, in a private folder.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path

from backends.machine.files.lock_holders import Holder
from budget.errors import InternalError
from shim.config import Config
from shim.keeper.engines.running_engine import EngineFactory
from shim.keeper.keeper import Keeper
from shim.keeper.process.dead_inline import remove_dead
from shim.keeper.process.device_locks import DeviceLocks, lock_budgeted, say_shared
from shim.keeper.process.ready_threads import ReadyThreads
from shim.keeper.process.socket_watch import LOOK_EVERY_S, Reachable
from shim.keeper.server.server import Server
from shim.paths import inline_dir, keeper_socket


class InlineKeeper:
    """Starts a keeper with the object, and ends it with `close`. Engines never outlast the process.

    It locks the devices that it books, as every keeper does, unless `share` is given. With a factory it
    locks none, because the factory's engines may take no bytes at all.

    Args:
        config: the configuration to run.
        factory: makes engines; real llama-server processes when not given.
        share: book devices beside another keeper; a warning names that keeper.

    Raises:
        ConfigError: another keeper books one of its devices.
        KeepwarmError: why it cannot run.
    """

    def __init__(
        self, config: Config, *, factory: EngineFactory | None = None, share: bool = False
    ) -> None:
        self.runtime = inline_dir()
        self._config = config
        self._share = share
        self._factory = factory
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._pid = os.getpid()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name="keepwarm-keeper", daemon=True)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            # Interrupted: the thread that has begun to run has to be ended here.
            self.close()
            raise
        error = self._failure()
        if error is not None:
            self.close()
            raise error

    def _failure(self) -> BaseException | None:
        return self._error

    @property
    def socket_path(self) -> Path:
        """The path of its socket."""
        return keeper_socket(self.runtime)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_default_executor(ReadyThreads())
        if self._abandoned:
            self._stop.set()
        with self._locks() as locks:
            locks.answer_on(self._loop)
            keeper = await Keeper.create(self._config, self.runtime, self._factory)
            server = Server(keeper, self._stop)
            reachable = Reachable(self.runtime, server, None, give_up=self._stop.set)
            try:
                server.listen(self.socket_path)
                keeper.background.every("staying reachable", LOOK_EVERY_S, reachable.look)
                self._ready.set()
                if self._factory is None:
                    keeper.shell.owed_events.aside(
                        "sweep", "removing what dead keepers left", self._sweep
                    )
                await self._stop.wait()
            finally:
                server.close()
                await keeper.close()

    async def _sweep(self) -> None:
        await asyncio.to_thread(remove_dead, self.runtime)

    def _locks(self) -> DeviceLocks:
        note = Holder.this_process(self.runtime, inline=True)
        if self._factory is not None:
            return DeviceLocks(())
        if self._share:
            say_shared(self._config, note)
            return DeviceLocks(())
        return lock_budgeted(self._config, note)

    def close(self) -> None:
        """End the engines and the thread, and remove the folder. Idempotent."""
        if os.getpid() != self._pid:
            raise InternalError("an inline keeper is closed by the process that made it")
        self._abandoned = True
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=30.0)
        shutil.rmtree(self.runtime, ignore_errors=True)
