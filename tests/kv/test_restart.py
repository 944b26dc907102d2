"""Conversations over a restart of the keeper, on scripted engines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import ScriptedEngine
from budget import events as ev
from budget.actions import Grant
from shim.config import Config
from shim.keeper import limits
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.keeper import Keeper
from tests.kv.support import config, saved_files

LONG = {"messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 2}


class Restarts:
    """Keepers one after the other, over the same models and the same folder."""

    def __init__(self, models: dict[str, Path], runtime: Path, folder: Path) -> None:
        given = config({name: {"path": str(path)} for name, path in models.items()}, folder)
        self.config = Config.from_mapping(given)
        self.runtime = runtime
        runtime.mkdir(mode=0o700)
        self.engines: dict[str, ScriptedEngine] = {}
        self.kind: type[ScriptedEngine] = ScriptedEngine

    def make(self, entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        """An engine of the newest keeper."""
        engine = self.engines[entry.names[0]] = self.kind(entry.names[0], runtime)
        return engine

    def running(
        self, work: Callable[[Keeper], Awaitable[None]], *, keep_conversations: bool = True
    ) -> None:
        """A keeper from its start to its end in good order."""

        async def run() -> None:
            keeper = await Keeper.create(self.config, self.runtime, self.make)
            try:
                await work(keeper)
            finally:
                await keeper.close(keep_conversations=keep_conversations)

        asyncio.run(run())


async def serve(keeper: Keeper, model: str) -> str:
    """A lease on a model, granted."""
    granted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    lease = keeper.ask("c1", model, granted.set_result)
    outcome = await asyncio.wait_for(granted, 60)
    assert isinstance(outcome, Grant), outcome
    return lease


@pytest.fixture
def restarts(tiny_models: dict[str, Path], runtime_dir: Path, kv_folder: Path) -> Restarts:
    """Two models that fit together."""
    models = {"a": tiny_models["classifier"], "b": tiny_models["producer"]}
    return Restarts(models, runtime_dir / "run", kv_folder)


def test_what_idle_engines_held_is_there_after_a_restart(
    restarts: Restarts, kv_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved when the keeper ends, said in its log, restored by the next keeper's load."""

    async def talk(keeper: Keeper) -> None:
        lease = await serve(keeper, "a")
        restarts.engines["a"].requests.append(LONG)
        keeper.shell.post(ev.LeaseEnded(lease, "c1"))

    async def look(keeper: Keeper) -> None:
        (row,) = keeper.shell.supervisor.kv.kept()["models"]
        assert (row["models"], row["conversations"], row["bytes"]) == (["a"], 1, 1024)
        await serve(keeper, "a")
        assert restarts.engines["a"].restored == [(0, "slot-0.kv")]

    with caplog.at_level(logging.INFO, "keepwarm.keeper"):
        restarts.running(talk)
    assert "saved 1024 bytes of KV state in" in caplog.text
    assert "1 conversations are kept for the next keeper: 1024 bytes" in caplog.text
    restarts.running(look)
    assert len(saved_files(kv_folder)) == 1, "unused, and still worth what it was"


def test_engines_in_use_and_keepers_inside_programs_keep_nothing(
    restarts: Restarts, kv_folder: Path
) -> None:
    """Saving what generates would wait for it; an inline keeper ends with its program."""

    async def hold(keeper: Keeper) -> None:
        await serve(keeper, "a")
        restarts.engines["a"].requests.append(LONG)

    async def talk(keeper: Keeper) -> None:
        lease = await serve(keeper, "b")
        restarts.engines["b"].requests.append(LONG)
        keeper.shell.post(ev.LeaseEnded(lease, "c1"))

    restarts.running(hold)
    restarts.running(talk, keep_conversations=False)
    assert saved_files(kv_folder) == []


def test_a_save_that_takes_too_long_does_not_hold_the_end_up(
    restarts: Restarts,
    kv_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said, and what there is of the file goes."""

    class Slow(ScriptedEngine):
        async def save_kv(self, slot: int, name: str) -> int:
            await super().save_kv(slot, name)
            await asyncio.get_running_loop().create_future()
            return 0

    async def talk(keeper: Keeper) -> None:
        lease = await serve(keeper, "a")
        restarts.engines["a"].requests.append(LONG)
        keeper.shell.post(ev.LeaseEnded(lease, "c1"))

    monkeypatch.setattr(limits, "SAVE_AT_END_S", 0.01)
    restarts.kind = Slow
    with caplog.at_level(logging.WARNING, "keepwarm.keeper"):
        restarts.running(talk)
    assert "not all KV state was saved within 0.01 s" in caplog.text
    assert saved_files(kv_folder) == []


def test_clearing_deletes_what_is_kept(restarts: Restarts, kv_folder: Path) -> None:
    """Of one model or of all; the answer has the numbers of files and bytes."""

    async def talk(keeper: Keeper) -> None:
        for model in "ab":
            lease = await serve(keeper, model)
            restarts.engines[model].requests.append(LONG)
            keeper.shell.post(ev.LeaseEnded(lease, "c1"))

    async def clear(keeper: Keeper) -> None:
        assert await keeper.shell.supervisor.kv.clear("b") == (1, 1024)
        assert await keeper.shell.supervisor.kv.clear("b") == (0, 0)
        assert await keeper.shell.supervisor.kv.clear(None) == (1, 1024)
        assert keeper.shell.supervisor.kv.kept()["models"] == []

    restarts.running(talk)
    assert len(saved_files(kv_folder)) == 2
    restarts.running(clear)
    assert saved_files(kv_folder) == []
