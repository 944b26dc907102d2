"""What the keeper saves at an engine's end and restores at its next start, on scripted engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.base import Capabilities
from backends.scripted import Script, ScriptedEngine
from budget.errors import EndpointError
from budget.eviction.kv_store import KvFigures, Rate
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from shim.config import Config
from shim.keeper import limits
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.engines.warm_prompt import Warmed
from shim.keeper.kv.carry import KvCarrier
from shim.keeper.kv.keeping import kv_key
from shim.keeper.kv.saved_files import KvFiles
from shim.keeper.shell.history import EvictStory, LoadStory
from tests.kv.support import saved_files

PLACEMENT = Placement(
    EngineArgs(n_ctx=1024), {HOST: Footprint(weights_bytes=1000, kv_bytes=10_240)}, "closed-form"
)
LONG = {"messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 2}
DEAR = KvFigures(Rate(100, 0.1), Rate(100, 5.0), Rate(100, 5.0))


def entry(*, carries_kv: bool = True) -> CatalogEngine:
    """An engine of the catalog, without a file."""
    return CatalogEngine(
        "e", Path("/nowhere.gguf"), (PLACEMENT,), ("m",), (), "llama", "F16", None, None,
        identity="file", carries_kv=carries_kv,
    )  # fmt: skip


@dataclass
class Bench:
    """A carrier over a folder, and engines that start and end."""

    carrier: KvCarrier
    files: KvFiles
    root: Path

    def figures(self, figures: KvFigures) -> None:
        """What is known of the engine from now on."""
        self.files.engine_folder(kv_key(entry(), PLACEMENT, "b1"), {"stamp": []}).figures = figures

    @asynccontextmanager
    async def running(
        self, engine: ScriptedEngine | None = None, *, carries_kv: bool = True, warm: Any = None
    ) -> AsyncIterator[tuple[ScriptedEngine, LoadStory, EvictStory]]:
        """A started engine; at the end it leaves as an evicted one does."""
        engine = engine or ScriptedEngine("m", self.root)
        load = LoadStory("e/1", "e", "m", HOST, 1, "requested", 0)
        leave = EvictStory("e/1/end", "e", "m", HOST, 1, "evicted", 0)
        self.carrier.begin(engine, entry(carries_kv=carries_kv), PLACEMENT)
        await engine.start(PLACEMENT, lambda _fraction: None)
        await self.carrier.started(engine, warm, load)
        try:
            yield engine, load, leave
            await self.carrier.leaving(engine, leave, used=bool(engine.requests))
        finally:
            await engine.stop(grace_s=0)


@pytest.fixture
def bench(runtime_dir: Path) -> Iterator[Bench]:
    """A carrier with room for everything."""
    files = KvFiles.open(runtime_dir / "kv", 1_000_000, 60.0)
    assert files is not None
    yield Bench(KvCarrier(files, "b1"), files, runtime_dir)
    files.close()


def talk(engine: ScriptedEngine) -> None:
    """One conversation of a hundred words, as the engine remembers it."""
    engine.requests.append(LONG)


def test_conversations_are_there_after_the_next_start(bench: Bench) -> None:
    """Saved with its figures in the eviction's record, restored with them in the load's."""

    async def run() -> None:
        async with bench.running() as (engine, load, leave):
            talk(engine)
            assert load.restored_tokens == 0
        assert leave.saved_bytes == 1024
        assert leave.save_s > 0
        async with bench.running() as (engine, load, leave):
            assert engine.restored == [(0, "slot-0.kv")]
            assert load.restored_tokens == 8
            assert load.restore_s > 0
        assert leave.saved_bytes == 0, "no request used it, so the saved state is still right"
        assert len(saved_files(bench.files.folder)) == 1

    asyncio.run(run())


def test_nothing_is_saved_where_that_costs_more_than_it_spares(bench: Bench) -> None:
    """By the figures measured; what an earlier conversation left goes with it."""

    async def run() -> None:
        async with bench.running() as (engine, _, _leave):
            talk(engine)
        bench.figures(DEAR)
        async with bench.running() as (engine, _, leave):
            talk(engine)
        assert leave.saved_bytes == 0
        assert saved_files(bench.files.folder) == []

    asyncio.run(run())


def test_figures_are_learned_from_what_clients_tell(bench: Bench) -> None:
    """The cost of a prompt, and whether what was restored was of use; nonsense is left out."""

    async def run() -> None:
        async with bench.running() as (engine, _, _leave):
            talk(engine)
            answer = {"prompt_n": 100, "prompt_ms": 200.0, "cache_n": 0}
            bench.carrier.served(engine, answer)
            for nonsense in ("x", 10**400, -1, float("inf"), float("nan"), None):
                bench.carrier.served(engine, {"prompt_n": nonsense, "prompt_ms": 1.0, "cache_n": 0})
                bench.carrier.served(engine, {"prompt_n": 1, "prompt_ms": nonsense, "cache_n": 0})
        engine_folder = bench.files.engine_folder(kv_key(entry(), PLACEMENT, "b1"), {})
        assert engine_folder.figures.evaluation.s_per_token == pytest.approx(0.002)
        assert engine_folder.figures.reuse == 1.0
        async with bench.running() as (engine, _, _leave):
            talk(engine)
            bench.carrier.served(engine, answer)
        assert engine_folder.figures.reuse < 1.0

    asyncio.run(run())


def test_an_engine_that_declares_nothing_saves_nothing(bench: Bench) -> None:
    """Neither one whose shape cannot, nor one that says it cannot."""

    async def run() -> None:
        unable = ScriptedEngine("m", bench.root, Script(capabilities=Capabilities()))
        for engine, carries in ((None, False), (unable, True)):
            async with bench.running(engine, carries_kv=carries) as (engine_, _, leave):
                talk(engine_)
            assert leave.saved_bytes == 0
        assert saved_files(bench.files.folder) == []

    asyncio.run(run())


def test_a_crash_takes_what_was_restored_with_it(bench: Bench) -> None:
    """It may be the cause, so the next start does without."""

    async def run() -> None:
        async with bench.running() as (engine, _, _leave):
            talk(engine)
        async with bench.running() as (engine, _, _leave):
            bench.carrier.died(engine)
        async with bench.running() as (engine, load, _leave):
            assert load.restored_tokens == 0

    asyncio.run(run())


def test_a_restore_that_is_refused_is_no_error(bench: Bench) -> None:
    """The file goes, the load goes on."""

    class Refusing(ScriptedEngine):
        async def restore_kv(self, slot: int, name: str) -> int:
            raise EndpointError(f"slot {slot} does not take {name}")

    async def run() -> None:
        async with bench.running() as (engine, _, _leave):
            talk(engine)
        async with bench.running(Refusing("m", bench.root)) as (engine, load, _leave):
            assert load.restored_tokens == 0
        assert saved_files(bench.files.folder) == []

    asyncio.run(run())


def test_a_save_that_takes_too_long_holds_no_eviction_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is broken off, and what there is of the file goes."""
    monkeypatch.setattr(limits, "SAVE_S", 0.01)

    class Slow(ScriptedEngine):
        async def save_kv(self, slot: int, name: str) -> int:
            await super().save_kv(slot, name)
            await asyncio.get_running_loop().create_future()
            return 0

    async def run() -> None:
        async with bench.running(Slow("m", bench.root)) as (engine, _, leave):
            talk(engine)
        assert leave.saved_bytes == 0
        assert saved_files(bench.files.folder) == []

    asyncio.run(run())


def test_a_warm_prompt_is_evaluated_when_nothing_is_saved_of_it(bench: Bench) -> None:
    """Once for all starts where it can be saved, at every load where it cannot."""
    evaluated = []

    async def warm() -> Warmed:
        evaluated.append(1)
        return Warmed(100, 0.5)

    async def run() -> None:
        for _ in range(3):
            async with bench.running(warm=warm):
                pass
        assert len(evaluated) == 1
        for _ in range(2):
            async with bench.running(carries_kv=False, warm=warm):
                pass
        assert len(evaluated) == 3

    asyncio.run(run())


def test_a_model_that_cannot_be_read_at_the_moment_keeps_its_state(bench: Bench) -> None:
    """A reload finds its file away: the conversation stays. Taken out of the configuration, it goes."""
    key = kv_key(entry(), PLACEMENT, "b1")
    folder = bench.files.engine_folder(key, {"stamp": []}).folder
    (folder / "slot-0.kv").write_bytes(bytes(100))
    here = Config.from_mapping({"models": {"m": {"path": "/nowhere.gguf"}}})
    bench.carrier.configured([entry()], [], here)
    assert (folder / "slot-0.kv").exists()
    bench.carrier.configured([entry()], [], Config.from_mapping({"models": {}}))
    assert not folder.exists()
