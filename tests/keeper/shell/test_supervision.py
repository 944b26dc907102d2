"""What the keeper does beside its requests is supervised: found in the code, broken, going on."""

from __future__ import annotations

import ast
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shim import Config
from shim.keeper.engines import liveness
from shim.keeper.process import daemon, log_lines
from shim.keeper.process.inline import InlineKeeper
from shim.keeper.process.log_lines import KeeperLog
from shim.keeper.shell import background as module
from shim.keeper.shell.background import Background, Work
from shim.keeper.shell.fault_counts import FaultCounts
from shim.wire.start_order import Order
from tests.keeper.shell.injection import ERRORS, KEEPER, LIMIT_S, Injector, Lines, listening, soon

MAX_WAITS = 50
EVERY = Background.every

TASKS: dict[tuple[str, str], str] = {
    ("owed_events", "_start"): "every owed event: it ends as its event, or is noted",
    ("background", "_begin"): "every recurring task: it is begun again",
    ("ending", "end"): "an engine's stop: its owed event waits for it, and kills",
    ("loading", "_started"): "an engine's start: its owed event waits for it",
    ("start_ahead", "prepare"): "an engine's preparing: the load that takes it waits for it",
    ("staging", "_stage"): "the reading of a file: its owed event waits for it",
    ("keeping", "_seal"): "check sums: nothing waits for them, and what they raise is noted",
    ("supervisor", "save_conversations"): "saves at the end: waited for, within a bound",
    ("monitor", "_read"): "one reading: the recurring measurement waits for it",
    ("connection", "_later"): "the answer to a message: what it raises is answered",
    ("listener", "_admit"): "a connection that opens: what it raises is logged",
    ("daemon", "_main"): "reports to the starter that the keeper is ready",
    ("refresh", "_begin"): "every request that waits for the model raises its error",
}
"""Where the keeper's code makes tasks, and why none of them can die unheard."""

KeptJob = tuple[str, Work]


def sources() -> dict[str, ast.Module]:
    """The keeper's own files, parsed, by name."""
    files = sorted(Path(KEEPER).rglob("*.py"))
    return {file.stem: ast.parse(file.read_text("utf-8")) for file in files}


@dataclass
class Calls(ast.NodeVisitor):
    """The functions of a file in which something of a name is called."""

    names: frozenset[str]
    found: set[tuple[str, int]]
    inside: tuple[str, ...] = ()

    def visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Remember in what we are; nested functions count as the outer one."""
        before, self.inside = self.inside, (*self.inside, node.name)
        self.generic_visit(node)
        self.inside = before

    visit_FunctionDef = visit_AsyncFunctionDef = visit_function  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        """A call, perhaps of one of the names."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if name in self.names:
            self.found.add((self.inside[0], node.lineno))
        self.generic_visit(node)


def calls(*names: str) -> set[tuple[str, str, int]]:
    """File, function and line of every call in the keeper's code of a method of these names."""
    found = set()
    for file, tree in sources().items():
        visitor = Calls(frozenset(names), set())
        visitor.visit(tree)
        found |= {(file, function, line) for function, line in visitor.found}
    return found


def test_every_task_of_the_keeper_is_known_and_supervised() -> None:
    """A task that is made anywhere else would fail unheard; it belongs under a supervisor."""
    made = {(file, function) for file, function, _ in calls("create_task", "ensure_future")}
    assert made == set(TASKS)


@pytest.fixture
def config(tiny_models: dict[str, Path], runtime_dir: Path) -> Config:
    """A configuration with models that no request asks for."""
    models = {"a": {"path": str(tiny_models["classifier"]), "context": 1024}}
    kv = {"folder": str(runtime_dir / "kv")}
    return Config.from_mapping({"budget": {"device": "host"}, "models": models, "kv": kv})


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], KeptJob]:
    """The recurring tasks that are begun from now on, by the place in the code that begins each."""
    found: dict[tuple[str, int], KeptJob] = {}

    def noting(self: Background, name: str, period_s: float, work: Work, **more: Any) -> None:
        code = sys._getframe(1)
        found[Path(code.f_code.co_filename).stem, code.f_lineno] = (name, work)
        EVERY(self, name, 3600.0, work, **more)

    monkeypatch.setattr(Background, "every", noting)
    monkeypatch.setattr(log_lines, "bound_stream", lambda *_: None)
    return found


async def serving(config: Config, folder: Path, use: Callable[[], Awaitable[None]]) -> None:
    """A keeper as its own process runs it, on this loop, while it is used."""
    ready, stop = asyncio.Event(), asyncio.Event()
    (folder / "r").mkdir(mode=0o700)
    handlers = list(logging.getLogger().handlers)
    log = KeeperLog(folder / "keeper.log")
    served = asyncio.create_task(
        daemon.serve(Order(config, folder / "r", False, 0.0), ready, stop, log)
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({served, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert ready.is_set(), served.exception()
    try:
        await use()
    finally:
        stop.set()
        await served
        logging.getLogger().handlers[:] = handlers


def test_every_recurring_task_is_found_where_the_code_begins_it(
    config: Config, runtime_dir: Path, jobs: dict[tuple[str, int], KeptJob]
) -> None:
    """The next test breaks all that there are, and cannot forget a new one."""

    async def nothing() -> None:
        pass

    InlineKeeper(config).close()
    asyncio.run(asyncio.wait_for(serving(config, runtime_dir, nothing), LIMIT_S))
    assert {(file, line) for file, _, line in calls("every")} == set(jobs)


class Once:
    """A job whose first time meets one failure, and that is over after the next time without one."""

    def __init__(self, work: Work, injector: Injector, begin: BaseException | None) -> None:
        self.over = asyncio.Event()
        self._work = work
        self._injector = injector
        self._begin = begin
        self._times = 0

    async def __call__(self) -> None:
        """One time."""
        self._times += 1
        if self._times > 1:
            await self._work()
            self.over.set()
            return
        if self._begin is not None:
            raise self._begin
        self._injector.armed = True
        try:
            await self._work()
        finally:
            self._injector.armed = False


async def goes_on(
    work: Work, injector: Injector, lines: Lines, begin: BaseException | None = None
) -> None:
    """A job that fails once is counted and logged once, and its next time comes."""
    faults, once = FaultCounts(), Once(work, injector, begin)
    background, before = Background(faults), len(lines.failures)
    EVERY(background, "job", 0.0, once)
    await once.over.wait()
    failed = int(begin is not None or bool(injector.hit))
    said = lines.failures[before:]
    assert len(said) == failed, f"{injector.hit}: {said}"
    assert sum(row["count"] for row in faults.rows()) == failed
    assert background.rows() == []
    await background.close()


@pytest.mark.parametrize("error", [name for name in ERRORS if name != "cancel"])
def test_a_recurring_task_that_fails_at_any_wait_goes_on(
    config: Config,
    runtime_dir: Path,
    jobs: dict[tuple[str, int], KeptJob],
    monkeypatch: pytest.MonkeyPatch,
    error: str,
) -> None:
    """Whichever it is, and whatever it raises wherever it waits: its next time comes."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(liveness, "REST_S", 0.0)

    async def broken(name: str, work: Work) -> int:
        loop = asyncio.get_running_loop()
        with listening() as lines:
            await goes_on(work, Injector(0, None), lines, begin=ERRORS[error]())
            for number in range(MAX_WAITS):
                injector = Injector(number, ERRORS[error])
                loop.set_task_factory(injector.factory)  # type: ignore[arg-type]
                await goes_on(work, injector, lines)
                if not injector.hit:
                    return number
        raise AssertionError(f"the waits of {name} do not end")

    async def use() -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor = soon(loop)  # type: ignore[method-assign,assignment]
        waits = {name: await broken(name, work) for name, work in list(jobs.values())}
        assert waits["measuring"] > 0

    asyncio.run(asyncio.wait_for(serving(config, runtime_dir, use), LIMIT_S))
