"""Engines that hang in whatever they are asked, and ends that hang: every wait has a bound."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import ScriptedEngine
from budget import events as ev
from budget.errors import KeepwarmError
from budget.settings import CoreSettings
from shim import Config
from shim.keeper import limits
from shim.keeper.catalog.catalog import Catalog, CatalogEngine
from shim.keeper.keeper import Keeper
from shim.keeper.shell.yielding import Generated, yield_lease
from tests.keeper.shell.injection import (
    LIMIT_S,
    TALK,
    Bench,
    Injector,
    bench,
    check_serves,
    listening,
)

SOON_S = 0.01


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bound of the shell is next to nothing."""
    for name, value in vars(limits).items():
        if name.endswith("_S") and isinstance(value, float):
            monkeypatch.setattr(limits, name, SOON_S)


@asynccontextmanager
async def opened(catalog: Catalog) -> AsyncIterator[Bench]:
    """A bench on which nothing but engines hang."""
    async with asyncio.timeout(LIMIT_S), bench(catalog, Injector(0, None)) as it:
        yield it


async def released(it: Bench) -> None:
    """What hung goes on, and nothing hangs any more."""
    it.hanging = ""
    it.released.set()
    await it.quiet()


@pytest.mark.parametrize("deaf", [False, True], ids=["heeds", "deaf"])
@pytest.mark.parametrize("method", ["prepare", "start", "stop"])
def test_an_engine_that_hangs_holds_neither_its_caller_nor_others(
    catalog: Catalog, method: str, deaf: bool
) -> None:
    """The request has an outcome, the bytes are back, and one line says what hung."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            await it.serve("a")
            it.hanging, it.deaf = method, deaf
            with listening() as lines:
                outcome = await it.ask("b")
            assert isinstance(outcome, KeepwarmError) is (method != "stop")
            assert len(lines.failures) == 1, lines.failures
            await released(it)
            await check_serves(it)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["kv_tokens", "save_kv", "restore_kv"])
def test_kv_state_that_hangs_costs_a_prompt_evaluation_and_no_request(
    catalog: Catalog, method: str
) -> None:
    """Saving before an eviction and restoring after a load end at their bounds."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            await it.serve("b")
            await it.serve("a")
            await it.quiet()
            it.hanging = method
            assert not isinstance(await it.ask("b"), KeepwarmError)
            await released(it)
            await check_serves(it)

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["kv_tokens", "save_kv", "restore_kv"])
def test_an_interrupted_answer_goes_on_where_its_state_hangs(catalog: Catalog, method: str) -> None:
    """Its lease comes back, and no file of it stays."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            lease = await it.granted(it.ask("a", "low", priority=0, preemptible=True))
            it.engine().requests.append(TALK)
            first = it.ask("a", "high", priority=9)
            it.hanging = method
            loop = asyncio.get_running_loop()
            answer = yield_lease(it.shell, "low", lease.request_id, Generated(100, 1))
            yielding = loop.create_task(answer)
            it.shell.post(ev.LeaseEnded((await it.granted(first)).request_id, "high"))
            grant, _ = await yielding
            assert grant.request_id == lease.request_id
            await released(it)
            await check_serves(it)

    asyncio.run(scenario())


def test_a_file_that_cannot_be_read_on_does_not_hold_looking_ahead(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that hangs ends the staging; the model is served when it is asked for."""

    async def hanging(*_: Any, **__: Any) -> int:
        await asyncio.get_running_loop().create_future()
        return 0

    monkeypatch.setattr("shim.keeper.engines.staging.stage_file", hanging)
    monkeypatch.setattr("shim.keeper.engines.staging.missing_bytes", lambda _: 1 << 20)

    async def scenario() -> None:
        settings = CoreSettings(prefetch="stage")
        async with asyncio.timeout(LIMIT_S), bench(catalog, Injector(0, None), settings) as it:
            it.shell.post(ev.UsesDeclared("c", ("a",)))
            assert it.shell.core.prefetcher.staging
            await it.quiet()
            assert not it.shell.core.prefetcher.staging
            await check_serves(it)

    asyncio.run(scenario())


# The keeper's own end

STEPS: dict[str, Callable[[Keeper], tuple[Any, str]]] = {
    "recurring tasks": lambda keeper: (keeper.background, "close"),
    "conversations": lambda keeper: (keeper.shell.supervisor, "save_conversations"),
    "owed events": lambda keeper: (keeper.shell.owed_events, "close"),
    "what was prepared": lambda keeper: (keeper.shell.loads, "close"),
    "engines": lambda keeper: (keeper.shell.supervisor, "close"),
    "KV state": lambda keeper: (keeper.shell.supervisor.kv, "close"),
    "what was learned": lambda keeper: (keeper, "_remember"),
}


def _hangs() -> Any:
    return asyncio.get_running_loop().create_future()


def _fails() -> Any:
    raise RuntimeError("odd")


@pytest.mark.parametrize("way", [_hangs, _fails], ids=["hangs", "fails"])
@pytest.mark.parametrize("step", STEPS)
def test_a_keeper_ends_its_engines_whichever_step_of_its_end_fails(
    tiny_models: dict[str, Path], runtime_dir: Path, step: str, way: Callable[[], Any]
) -> None:
    """One step that hangs or raises costs itself: no engine is left."""
    models = {"a": {"path": str(tiny_models["classifier"]), "context": 1024}}
    given = {
        "budget": {"device": "host"},
        "models": models,
        "kv": {"folder": str(runtime_dir / "kv")},
    }
    config = Config.from_mapping(given)
    engines: list[ScriptedEngine] = []

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        engines.append(ScriptedEngine(entry.names[0], runtime))
        return engines[-1]

    async def scenario() -> None:
        keeper = await Keeper.create(config, runtime_dir, make)
        granted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        keeper.ask("c", "a", granted.set_result)
        await granted
        owner, name = STEPS[step](keeper)

        async def instead(*_: Any, **__: Any) -> None:
            await way()

        setattr(owner, name, instead)
        async with asyncio.timeout(LIMIT_S):
            await keeper.close(keep_conversations=True)
        assert not engines[0].memory()
        assert [row["kind"] for row in keeper.shell.faults.rows()] == ["end"]

    asyncio.run(scenario())


HUNG_THREAD = """
import asyncio, threading
from shim.keeper.process.closing import end_process_within

async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    end_process_within(0.01)

asyncio.run(main())
"""


def test_a_thread_that_hangs_does_not_keep_a_keeper_from_ending() -> None:
    """A disk or a driver that does not answer holds a thread; the process ends all the same."""
    assert subprocess.run([sys.executable, "-c", HUNG_THREAD], timeout=LIMIT_S).returncode == 0
