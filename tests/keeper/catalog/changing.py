"""A keeper over scripted engines whose model files are real, small, and change under it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from budget import actions as act
from budget import events as ev
from budget.errors import KeepwarmError
from shim import Config
from shim.keeper.catalog.catalog import CatalogEngine, build_catalog
from shim.keeper.keeper import Keeper
from tests.gguf import raw

LIMIT_S = 60.0


def model_bytes(name: str, vocabulary: int = 24) -> bytes:
    """A small llama file; its bytes grow with its vocabulary."""
    replaced = (b"general.name", b"tokenizer.ggml.tokens", b"tokenizer.ggml.scores")
    keys = [key for key in raw.llama_keys() if key.name not in replaced]
    tokens = tuple(b"t%d" % i for i in range(vocabulary))
    keys += [
        raw.Key(b"general.name", raw.STRING, name.encode()),
        raw.Key(b"tokenizer.ggml.tokens", raw.ARRAY, tokens, raw.STRING),
    ]
    embedding = raw.Tensor(b"token_embd.weight", (64, vocabulary), 8, vocabulary * 68)
    return bytes(raw.build(keys, [embedding, *raw.llama_tensors()[1:]]).data)


def write_shards(folder: Path, name: str) -> Path:
    """A model in two files; returns the first."""
    tensors = raw.llama_tensors()
    for i, part in enumerate((tensors[:5], tensors[5:])):
        keys = raw.llama_keys() if i == 0 else []
        split = {b"split.no": i, b"split.count": 2, b"split.tensors.count": len(tensors)}
        keys += [raw.Key(key, raw.U32, number) for key, number in split.items()]
        (folder / f"{name}-{i + 1:05}-of-00002.gguf").write_bytes(raw.build(keys, part).data)
    return folder / f"{name}-00001-of-00002.gguf"


class Engine(ScriptedEngine):
    """An engine whose start waits for the test, and that needs its file."""

    def __init__(self, entry: CatalogEngine, runtime: Path, gate: asyncio.Event) -> None:
        super().__init__(entry.names[0], runtime, Script(load_gate=gate))
        self.entry = entry


@dataclass
class Changing:
    """One keeper, its files, and what its clients see."""

    keeper: Keeper
    folder: Path
    engines: list[Engine] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    _count: int = 0

    def gate(self, model: str) -> asyncio.Event:
        """Loads of a model wait for it; open unless the test closes it."""
        if model not in self.gates:
            self.gates[model] = asyncio.Event()
            self.gates[model].set()
        return self.gates[model]

    def file(self, model: str) -> Path:
        """The file that a model is configured with."""
        path = self.keeper.config.models[model].path
        assert path is not None
        return Path(path)

    async def ask(self, model: str, client: str = "c") -> asyncio.Future[act.Grant]:
        """A request arrives, as at the keeper's socket.

        Raises:
            KeepwarmError: the model cannot be run now.
        """
        if not self.keeper.is_ready_for(model):
            await self.keeper.make_ready(model)
        future: asyncio.Future[act.Grant] = asyncio.get_running_loop().create_future()

        def done(outcome: act.Grant | KeepwarmError) -> None:
            if isinstance(outcome, KeepwarmError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.keeper.ask(client, model, done)
        return future

    async def lease(self, model: str, client: str = "c") -> act.Grant:
        """A request that waits for its lease."""
        return await asyncio.wait_for(await self.ask(model, client), LIMIT_S)

    def end(self, grant: act.Grant, client: str = "c") -> None:
        """A lease is given back."""
        self.keeper.shell.post(ev.LeaseEnded(grant.request_id, client))

    async def serve(self, model: str, client: str = "c") -> act.Grant:
        """One whole use of a model."""
        grant = await self.lease(model, client)
        answer = self.keeper.granted(grant)
        assert answer["engine"] == grant.engine_id
        self.end(grant, client)
        return grant

    def check(self) -> None:
        """Books balance, and nothing has gone wrong inside."""
        self.keeper.shell.core.validate()
        assert self.keeper.status()["keeper"]["faults"] == []


def config_of(folder: Path, models: dict[str, dict[str, Any]], **sections: Any) -> Config:
    """A configuration over files in a folder."""
    budget = {"device": "host", "limit": "200MB", "reserve": 0, **sections.pop("budget", {})}
    return Config.from_mapping(
        {"budget": budget, "kv": {"enabled": False}, "models": models, **sections}
    )


@contextlib.contextmanager
def closed_form() -> Iterator[None]:
    """Bytes are computed from headers: no process is started to measure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backends.footprint.inspect.dry_run_available", lambda: False)
        yield


@contextlib.asynccontextmanager
async def changing(
    names: str = "ab",
    budget: dict[str, Any] | None = None,
    *,
    shards: str = "",
    one_fits: bool = False,
    **entries: dict[str, Any],
) -> AsyncIterator[Changing]:
    """A keeper with a model for each letter, those among `shards` in two files."""
    with closed_form(), tempfile.TemporaryDirectory(prefix="kw-") as root:
        folder = Path(root) / "models"
        folder.mkdir()
        models = {}
        for name in names:
            path = folder / f"{name}.gguf"
            if name in shards:
                path = write_shards(folder, name)
            else:
                path.write_bytes(model_bytes(name))
            models[name] = {"path": str(path), "context": 512, **entries.get(name, {})}
        if one_fits:
            read = build_catalog(config_of(folder, models)).prepared.values()
            most = max(row.placements[0].total_bytes for row in read)
            budget = {**(budget or {}), "limit": most + most // 2}
        runtime = Path(root) / "r"
        runtime.mkdir(mode=0o700)
        it: Changing

        def make(entry: CatalogEngine, runtime: Path) -> Engine:
            it.engines.append(Engine(entry, runtime, it.gate(entry.names[0])))
            return it.engines[-1]

        config = config_of(folder, models, budget=budget or {})
        keeper = await Keeper.create(config, runtime, make)
        it = Changing(keeper, folder)
        try:
            yield it
        finally:
            for gate in it.gates.values():
                gate.set()
            await keeper.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a loop of its own, within a bound."""
    asyncio.run(asyncio.wait_for(scenario(), LIMIT_S))


def remove(path: Path) -> None:
    """Whatever lies there is gone."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
