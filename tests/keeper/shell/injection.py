"""Failures at every wait of the keeper's shell: a shell over scripted engines, and what breaks it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import shim.keeper
from backends.base import Death, LoadReport
from backends.scripted import Script, ScriptedEngine
from budget import actions as act
from budget import events as ev
from budget.books.states import State
from budget.core import BudgetCore
from budget.errors import KeepwarmError, LoadFailed
from budget.footprint import HOST, Placement
from budget.settings import CoreSettings
from shim.keeper.catalog.catalog import Catalog, CatalogEngine
from shim.keeper.catalog.corrections import Corrections
from shim.keeper.engines.running_engine import Outcome
from shim.keeper.kv.carry import KvCarrier
from shim.keeper.kv.saved_files import KvFiles
from shim.keeper.shell.actions_out import Shell

KEEPER = str(Path(shim.keeper.__file__).parent)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where files cost nothing; None: where temporary files are."""
LIMIT_S = 60.0
TURNS = 5
"""Of the loop, without anything under way, until all is quiet."""
TALK = {"messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 2}


class Cancel(Exception):
    """Instead of raising: the task that waits is cancelled from outside."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "OSError": lambda: OSError(28, "No space left on device"),
    "KeepwarmError": lambda: LoadFailed("the disk said no."),
    "RuntimeError": lambda: RuntimeError("odd"),
    "MemoryError": MemoryError,
    "CancelledError": asyncio.CancelledError,
    "cancel": Cancel,
}


class Injector:
    """Makes one wait of the shell's tasks raise: the one with this number, counted while it is armed."""

    def __init__(self, number: int, make: Callable[[], BaseException] | None) -> None:
        self.armed = False
        self.hit = ""
        self._left = number
        self._make = make

    def factory(
        self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        """A task factory that watches over tasks of the keeper's own code."""
        code = getattr(coro, "cr_code", None)
        if code is not None and code.co_filename.startswith(KEEPER):
            coro = _Watched(coro, self)
        return asyncio.Task(coro, loop=loop, **options)

    def due(self, name: str) -> BaseException | None:
        """What this wait raises; None: nothing."""
        if not self.armed or self.hit:
            return None
        self._left -= 1
        if self._left >= 0 or self._make is None:
            return None
        self.hit = name
        return self._make()


class _Watched(Coroutine[Any, Any, Any]):
    """A coroutine each of whose waits may raise instead."""

    def __init__(self, coro: Coroutine[Any, Any, Any], injector: Injector) -> None:
        self._coro = coro
        self._injector = injector
        self.__name__ = str(getattr(coro, "__name__", coro))
        self.__qualname__ = str(getattr(coro, "__qualname__", coro))

    def __await__(self) -> Any:
        return self._coro.__await__()

    def send(self, value: Any) -> Any:
        return self._next(self._coro.send(value))

    def throw(self, *error: Any) -> Any:
        return self._next(self._coro.throw(*error))

    def close(self) -> None:
        self._coro.close()

    def _next(self, waits_for: Any) -> Any:
        error = self._injector.due(self.__qualname__)
        if isinstance(error, Cancel):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        elif error is not None:
            return self._next(self._coro.throw(error))
        return waits_for


class Begin:
    """Makes one call within the keeper's code raise, while an action of one kind is begun."""

    def __init__(
        self,
        number: int = 0,
        make: Callable[[], BaseException] | None = None,
        kind: type[Any] | None = None,
    ) -> None:
        self.armed = False
        self.hit = ""
        self._left = number
        self._make = make
        self._kind = kind

    def around(self, shell: Shell) -> None:
        """Put this around what begins actions, and note what is begun."""
        carry_out = shell._carry_out

        def carried(action: act.Action) -> bool:
            mine = self._kind is not None and isinstance(action, self._kind)
            if self.hit or not self.armed or not mine:
                return carry_out(action)
            before = sys.gettrace()
            sys.settrace(self._called)
            try:
                return carry_out(action)
            finally:
                sys.settrace(before)

        shell._carry_out = carried  # type: ignore[method-assign]

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if self.hit or event != "call" or not frame.f_code.co_filename.startswith(KEEPER):
            return
        self._left -= 1
        if self._left < 0 and self._make is not None:
            self.hit = frame.f_code.co_qualname
            raise self._make()


class Waiting(ScriptedEngine):
    """An engine each of whose actions begins with a wait, as with a real one."""

    pause: Callable[[str], Awaitable[None]]

    async def prepare(self, placement: Placement) -> None:
        await self.pause("prepare")
        await super().prepare(placement)

    async def start(self, placement: Placement, on_progress: Callable[[float], None]) -> LoadReport:
        await self.pause("start")
        return await super().start(placement, on_progress)

    async def wait_death(self) -> Death:
        await self.pause("wait_death")
        return await super().wait_death()

    async def stop(self, *, grace_s: float) -> None:
        await self.pause("stop")
        await super().stop(grace_s=grace_s)

    async def kv_tokens(self) -> Any:
        await self.pause("kv_tokens")
        return await super().kv_tokens()

    async def save_kv(self, slot: int, name: str) -> int:
        await self.pause("save_kv")
        return await super().save_kv(slot, name)

    async def restore_kv(self, slot: int, name: str) -> int:
        await self.pause("restore_kv")
        return await super().restore_kv(slot, name)


class Lines(logging.Handler):
    """The failures in the log: a line each."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if record.levelno >= logging.ERROR or " failed: " in said:
            self.failures.append(f"{record.name}: {said}")


@contextlib.contextmanager
def listening() -> Iterator[Lines]:
    """What the keeper and asyncio say of failures."""
    lines, names = Lines(), ("keepwarm.keeper", "asyncio")
    for name in names:
        logging.getLogger(name).addHandler(lines)
    try:
        yield lines
    finally:
        for name in names:
            logging.getLogger(name).removeHandler(lines)


@dataclass
class Bench:
    """A shell with two models of which one fits, and what its clients see."""

    shell: Shell
    injector: Injector
    folder: Path
    engines: list[Waiting] = field(default_factory=list)
    carried: set[type[Any]] = field(default_factory=set)
    raised: list[BaseException] = field(default_factory=list)
    """The exceptions that a client of the shell got."""
    fail_load: bool = False
    hanging: str = ""
    """What engines are asked for in vain."""
    deaf: bool = False
    """Not even a cancellation ends it."""
    released: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0

    def ask(self, model: str, client: str = "c", **fields: Any) -> asyncio.Future[Outcome]:
        """A request arrives; the future holds its outcome."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._count += 1
        request = ev.RequestArrived(f"q{self._count}", client, model, **fields)

        def done(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        self.shell.ask(request, done)
        return future

    def asked(self, model: str, client: str, **fields: Any) -> str | None:
        """A request arrives; returns its id, or None where it was refused on the spot."""
        try:
            self.ask(model, client, **fields)
        except KeepwarmError:
            return None
        return f"q{self._count}"

    async def serve(self, model: str, client: str = "c") -> act.Grant:
        """A request that is served, and ends."""
        grant = await self.granted(self.ask(model, client))
        self.engine().requests.append(TALK)
        self.shell.post(ev.LeaseEnded(grant.request_id, client))
        return grant

    @staticmethod
    async def granted(asked: asyncio.Future[Outcome]) -> act.Grant:
        """The lease of a request."""
        outcome = await asyncio.wait_for(asked, LIMIT_S)
        if isinstance(outcome, KeepwarmError):
            raise outcome
        return outcome

    def engine(self) -> Waiting:
        """The engine that was made last."""
        return self.engines[-1]

    def states(self) -> dict[str, State]:
        """The residency of each engine."""
        return {e.engine_id: e.state for e in self.shell.core.state.residents}

    def counted(self) -> int:
        """The failures that `ps` shows."""
        failed: int = sum(engine.failures for engine in self.shell.core.state.residents)
        return failed + sum(int(row["count"]) for row in self.shell.faults.rows())

    async def pause(self, method: str) -> None:
        """What an engine does before it does what it was asked: nothing, or for ever."""
        await asyncio.sleep(0)
        while method == self.hanging and not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                if not self.deaf:
                    raise

    async def quiet(self) -> None:
        """Wait until nothing is under way but the watches over engines."""
        me, loop = asyncio.current_task(), asyncio.get_running_loop()
        still = 0
        while still < TURNS:
            await asyncio.sleep(0)
            supervisor = self.shell.supervisor.now.values()
            # A watch that waits for nothing but its engine's death is idle; one that acts is not.
            idle = {me, *(running.watch for running in supervisor if running.engine.memory())}
            under_way = {task for task in asyncio.all_tasks(loop) if task not in idle}
            still = 0 if under_way else still + 1
            if under_way:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)


@contextlib.asynccontextmanager
async def bench(
    catalog: Catalog, injector: Injector, settings: CoreSettings | None = None
) -> AsyncIterator[Bench]:
    """A shell on this loop, whose tasks are watched over by an injector."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(injector.factory)  # type: ignore[arg-type]
    loop.run_in_executor = soon(loop)  # type: ignore[method-assign,assignment]
    mine = replace(catalog, engines=dict(catalog.engines), prepared=dict(catalog.prepared))
    core = BudgetCore(mine.pools, mine.models(), mine.specs(), settings=settings or CoreSettings())
    with tempfile.TemporaryDirectory(prefix="kw-", dir=MEMORY) as name:
        folder = Path(name)
        files = KvFiles.open(folder / "kv", 1 << 30, 60.0)
        assert files is not None
        made: list[Waiting] = []

        def factory(entry: CatalogEngine, runtime: Path) -> Waiting:
            load: Literal["ok", "fail"] = "fail" if it.fail_load else "ok"
            made.append(Waiting(entry.names[0], runtime, Script(load=load)))
            made[-1].pause = it.pause
            return made[-1]

        corrections = Corrections(mine.learned, "b1")
        shell = Shell(core, mine, folder, factory, corrections, KvCarrier(files, "b1"))
        it = Bench(shell, injector, folder, made)
        carry_out = shell._carry_out

        def noting(action: act.Action) -> bool:
            it.carried.add(type(action))
            return carry_out(action)

        shell._carry_out = noting  # type: ignore[method-assign]
        try:
            yield it
        finally:
            injector.armed = False
            it.released.set()
            shell.close()
            await shell.owed_events.close(LIMIT_S)
            await shell.loads.close()
            await shell.supervisor.close(grace_s=0.0)
            await shell.supervisor.kv.close(keep=False)


def soon(loop: asyncio.AbstractEventLoop) -> Callable[..., Any]:
    """`run_in_executor` for a loop that does what threads would do: a wait like any other, no race."""

    def run_in_executor(_: object, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = loop.create_future()

        def run() -> None:
            if future.done():
                return
            try:
                future.set_result(work(*args))
            except Exception as error:
                future.set_exception(error)

        loop.call_soon(run)
        return future

    return run_in_executor


def measured(device_free: int) -> ev.DeviceMeasured:
    """The host has so many bytes for engines, and as many free."""
    return ev.DeviceMeasured(HOST, device_free, device_free, 2 << 20)


async def check_serves(it: Bench) -> None:
    """All is well: the books, the engines, and a request for each model."""
    core = it.shell.core
    core.validate()
    assert not {State.LOADING, State.EVICTING} & set(it.states().values()), it.states()
    for client in ("c", "low", "high"):
        it.shell.post(ev.ClientGone(client))
    await it.quiet()
    assert not core.state.leases
    assert not len(core.state.queue)
    for model in ("a", "b"):
        await it.serve(model, "next")
    await it.quiet()
    core.validate()
    assert not list(it.folder.glob("kv/*/yield-*"))
