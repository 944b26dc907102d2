"""How an engine of each kind is made. A further kind is one more row of `MAKERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from backends.base import Engine
from backends.kinds import Backend
from backends.llama.binding.binding_engine import LlamaBindingEngine
from backends.llama.engine import LlamaServerEngine
from backends.python.python_engine import PythonEngine
from backends.server.command import ServerSpec
from backends.server.server_engine import ServerEngine
from backends.vllm.vllm_engine import VllmEngine, VllmSpec
from budget.errors import InternalError
from shim.config import Config
from shim.config.schema.entry import ModelEntry
from shim.keeper.catalog.catalog import CatalogEngine
from shim.keeper.catalog.vllm_models import vllm_spec
from shim.keeper.catalog.worker_models import server_spec, worker_spec
from shim.keeper.engines.running_engine import EngineFactory

Maker = Callable[[Config, CatalogEngine, Path], Engine]
"""Makes an engine that is to be started: the configuration in force, the engine, the runtime folder."""


def _llama(config: Config, engine: CatalogEngine, runtime: Path) -> Engine:
    made = LlamaBindingEngine if engine.placements[0].args.binding else LlamaServerEngine
    return made(
        engine.path,
        engine.names[0],
        runtime,
        threads=engine.threads,
        stall_s=config.keeper.stall_timeout,
        margin_bytes=config.keeper.engine_margin.resolve(0),
        carries_kv=engine.carries_kv,
        server=engine.entry.llama_server if engine.entry is not None else None,
    )


def _of_spec(
    made: Callable[..., Engine], spec_of: Callable[[ModelEntry, CatalogEngine], object]
) -> Maker:
    """How an engine is made that is not told what it takes, but only what it runs."""

    def make(config: Config, engine: CatalogEngine, runtime: Path) -> Engine:
        if engine.entry is None:
            raise InternalError(f"{engine.label} has no configuration")
        return made(
            spec_of(engine.entry, engine),
            engine.names[0],
            runtime,
            stall_s=config.keeper.stall_timeout,
            margin_bytes=config.keeper.engine_margin.resolve(0),
        )

    return make


def _server_spec(entry: ModelEntry, engine: CatalogEngine) -> ServerSpec:
    return server_spec(entry, engine.names[0].rpartition("/")[2])


def _vllm_spec(entry: ModelEntry, engine: CatalogEngine) -> VllmSpec:
    return vllm_spec(entry, [Path(row[0]) for row in engine.stamp])


MAKERS: Final[Mapping[Backend, Maker]] = {
    "llama.cpp": _llama,
    "llama-cpp-python": _llama,
    "python": _of_spec(PythonEngine, lambda entry, _engine: worker_spec(entry)),
    "server": _of_spec(ServerEngine, _server_spec),
    "vllm": _of_spec(VllmEngine, _vllm_spec),
}
"""The kinds that keepwarm starts."""


def engine_factory(config: Config) -> EngineFactory:
    """Makes engines of every kind, as a configuration asks for them."""

    def make(engine: CatalogEngine, runtime: Path) -> Engine:
        return MAKERS[engine.backend](config, engine, runtime)

    return make
