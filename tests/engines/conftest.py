"""Engines under the contract, and a real llama-server on a loopback port for the remote one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.base import Capabilities, Endpoint, Engine
from backends.engine_process.process import engine_environment
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from backends.openai import RemoteEngine
from backends.scripted import ScriptedEngine
from tests.engines.support import listening, llama, placement


@pytest.fixture(scope="session")
def loopback_server(tiny_models: dict[str, Path]) -> Iterator[Endpoint]:
    """A real llama-server on a free loopback port, as another user would run it."""
    binary = find_binary("llama-server")
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        root = Path(folder)
        settings = LaunchSettings(tiny_models["producer"], "far", root / "x.sock", root, 1, 1)
        argv = server_argv(binary, placement().args, settings)
        argv[argv.index("--host") + 1] = "127.0.0.1"
        log, env = root / "log", engine_environment(root, library_env(binary))
        with serving([*argv, "--port", "0"], env, log, lambda: bool(listening(log))):
            yield Endpoint(listening(log), "far", "openai")


@dataclass(frozen=True)
class Case:
    """One engine under the contract: how to make it, and what may be asked of it."""

    make: Callable[[Path], Engine]
    local: bool


@pytest.fixture(
    params=[
        pytest.param("llama.cpp", marks=pytest.mark.real),
        "scripted",
        pytest.param("remote", marks=pytest.mark.real),
    ]
)
def case(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Case:
    """Every engine that the contract holds for."""
    if request.param == "llama.cpp":
        return Case(lambda folder: llama(tiny_models["producer"], folder), local=True)
    if request.param == "scripted":
        return Case(lambda folder: ScriptedEngine("scripted", folder), local=True)
    far: Endpoint = request.getfixturevalue("loopback_server")
    chat_only = Endpoint(far.base_url, far.model_id, far.backend, capabilities=Capabilities())
    return Case(lambda _folder: RemoteEngine(chat_only, check=True), local=False)
