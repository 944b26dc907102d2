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
from backends.server.server_engine import ServerEngine
from backends.vllm.vllm_engine import VllmEngine
from budget.errors import InternalError
from shim.config import Config
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


def _python_worker(config: Config, engine: CatalogEngine, runtime: Path) -> Engine:
    if engine.entry is None:
        raise InternalError(f"{engine.label} has no configuration")
    return PythonEngine(
        worker_spec(engine.entry),
        engine.names[0],
        runtime,
        stall_s=config.keeper.stall_timeout,
        margin_bytes=config.keeper.engine_margin.resolve(0),
    )


def _vllm_server(config: Config, engine: CatalogEngine, runtime: Path) -> Engine:
    if engine.entry is None:
        raise InternalError(f"{engine.label} has no configuration")
    return VllmEngine(
        vllm_spec(engine.entry, [Path(row[0]) for row in engine.stamp]),
        engine.names[0],
        runtime,
        stall_s=config.keeper.stall_timeout,
        margin_bytes=config.keeper.engine_margin.resolve(0),
    )


def _server(config: Config, engine: CatalogEngine, runtime: Path) -> Engine:
    if engine.entry is None:
        raise InternalError(f"{engine.label} has no configuration")
    return ServerEngine(
        server_spec(engine.entry, engine.names[0].rpartition("/")[2]),
        engine.names[0],
        runtime,
        stall_s=config.keeper.stall_timeout,
        margin_bytes=config.keeper.engine_margin.resolve(0),
    )


MAKERS: Final[Mapping[Backend, Maker]] = {
    "llama.cpp": _llama,
    "llama-cpp-python": _llama,
    "python": _python_worker,
    "server": _server,
    "vllm": _vllm_server,
}
"""The kinds that keepwarm starts."""


def engine_factory(config: Config) -> EngineFactory:
    """Makes engines of every kind, as a configuration asks for them."""

    def make(engine: CatalogEngine, runtime: Path) -> Engine:
        return MAKERS[engine.backend](config, engine, runtime)

    return make
