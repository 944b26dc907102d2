"""Engines under the contract, and the real servers on loopback ports behind the remote ones."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from backends.base import Capabilities, Endpoint, Engine
from backends.engine_process.process import engine_environment
from backends.kinds import Verb
from backends.llama.args import LaunchSettings, server_argv
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import serving
from backends.machine.processes import process_tree
from backends.openai import RemoteEngine
from backends.scripted import Script, ScriptedEngine
from backends.server.command import ServerSpec
from backends.server.server_engine import ServerEngine
from budget.footprint import Placement
from tests.engines.support import binding, gauge, listening, llama, placement
from tests.engines.templates import TOOLS, with_template
from tools.vllm_server import CONTEXT, NAME, vllm_model, vllm_server

ROOMY = placement(n_ctx=8192, extra=with_template(TOOLS))
"""More context than an engine fills while a test looks, and a chat template with a place for tools."""


Started = contextlib.AbstractContextManager[tuple[Endpoint, int]]
"""A server that runs meanwhile: its address and its process."""


class FarServer:
    """A server of another user: started at the first question, and again after it was stopped."""

    def __init__(self, start: Callable[[Path], Started]) -> None:
        self._start = start
        self._ending = contextlib.ExitStack()
        self._started: tuple[Endpoint, int] | None = None

    def endpoint(self) -> Endpoint:
        """Where it answers."""
        if self._started is None:
            folder = Path(self._ending.enter_context(tempfile.TemporaryDirectory(prefix="kw-")))
            self._started = self._ending.enter_context(self._start(folder))
        return self._started[0]

    def crash(self) -> None:
        """Kill the processes in which the model runs: the children where there are any, or the server."""
        assert self._started is not None
        server = self._started[1]
        children = [pid for pid in process_tree(server) if pid != server]
        for pid in children or [server]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End it; the next question starts it again."""
        self._started = None
        self._ending.close()


@contextlib.contextmanager
def _llama_server(model: Path, folder: Path) -> Iterator[tuple[Endpoint, int]]:
    binary = find_binary("llama-server")
    settings = LaunchSettings(model, "far", folder / "x.sock", folder, 1, 1)
    argv = server_argv(binary, ROOMY.args, settings)
    argv[argv.index("--host") + 1] = "127.0.0.1"
    log, env = folder / "log", engine_environment(folder, library_env(binary))
    with serving([*argv, "--port", "0"], env, log, lambda: bool(listening(log))) as server:
        yield Endpoint(listening(log), "far", "openai"), server.pid


@contextlib.contextmanager
def _vllm(folder: Path) -> Iterator[tuple[Endpoint, int]]:
    with vllm_server(vllm_model(), folder / "log") as server:
        yield Endpoint(server.url, NAME, "vllm"), server.pid


@pytest.fixture(scope="session")
def far_llama(tiny_models: dict[str, Path]) -> Iterator[FarServer]:
    """A real llama-server on a free loopback port, as another user would run it."""
    server = FarServer(lambda folder: _llama_server(tiny_models["producer"], folder))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def far_vllm() -> Iterator[FarServer]:
    """A real vLLM on the CPU, on a free loopback port."""
    server = FarServer(_vllm)
    yield server
    server.stop()


@dataclass(frozen=True)
class Case:
    """One kind of engine under the contract.

    Attributes:
        name: as in a test's id.
        make: makes an engine that is not started.
        local: whether keepwarm runs it, and so weighs it.
        timings: whether its answers say how long their parts took.
        thinks: whether a model decides what it says, and not a script.
        long: a number of tokens that an answer has not reached when a test looks at it.
        placed: how it is started.
        crash: ends its processes as a crash would.
        bury: removes what a crash left, so that the next engine finds a server.
        busy: how many requests it works on now.
    """

    name: str
    make: Callable[[Path], Engine]
    local: bool
    busy: Callable[[Engine], int]
    crash: Callable[[Engine], None] = lambda engine: engine.kill()
    bury: Callable[[], None] = lambda: None
    timings: bool = True
    thinks: bool = True
    long: int = 4000
    placed: Placement = ROOMY


def _llama_case(models: dict[str, Path]) -> Case:
    return Case(
        "llama.cpp",
        lambda folder: llama(models["producer"], folder),
        local=True,
        busy=lambda engine: _busy_slots(engine.endpoint),
    )


def _server_case(models: dict[str, Path]) -> Case:
    """llama-server as any program of the user: on a port that it is given, with a key."""

    def made(folder: Path) -> Engine:
        binary = find_binary("llama-server")
        settings = LaunchSettings(models["producer"], "own", folder / "x.sock", folder, 1, 1)
        argv = server_argv(binary, ROOMY.args, settings)
        argv[argv.index("--host") + 1] = "127.0.0.1"
        argv += ["--port", "{port}", "--api-key-file", "{key_file}"]
        can = frozenset[Verb](["chat", "stream"])
        env = library_env(binary)
        files = (models["producer"],)
        spec = ServerSpec(tuple(argv), "own", can, ready="/health", files=files, env=env)
        return ServerEngine(spec, "own", folder)

    return Case(
        "server",
        made,
        local=True,
        busy=lambda engine: _busy_slots(engine.endpoint),
        placed=replace(ROOMY, source="guess"),
    )


def _binding_case(models: dict[str, Path]) -> Case:
    return Case(
        "llama-cpp-python",
        lambda folder: binding(models["producer"], folder),
        local=True,
        busy=lambda engine: _busy_slots(engine.endpoint),
        placed=placement(n_ctx=8192, binding=True),
    )


def _scripted_case() -> Case:
    script = tuple(f"word{number} " for number in range(50_000))
    return Case(
        "scripted",
        lambda folder: ScriptedEngine("scripted", folder, Script(tokens=script)),
        local=True,
        busy=lambda engine: engine.active_requests if isinstance(engine, ScriptedEngine) else 0,
        thinks=False,
        long=50_000,
    )


def _far_llama_case(server: FarServer) -> Case:
    far = server.endpoint()
    chat_only = Endpoint(far.base_url, far.model_id, far.backend, capabilities=Capabilities())
    return Case(
        "remote",
        lambda _folder: RemoteEngine(chat_only, check=True),
        local=False,
        busy=lambda engine: _busy_slots(engine.endpoint),
        crash=lambda _engine: server.crash(),
        bury=server.stop,
    )


def _vllm_case(server: FarServer) -> Case:
    far = server.endpoint()
    return Case(
        "vllm",
        lambda _folder: RemoteEngine(far, check=True),
        local=False,
        busy=lambda engine: gauge(engine.endpoint, "vllm:num_requests_running"),
        crash=lambda _engine: server.crash(),
        bury=server.stop,
        timings=False,
        long=CONTEXT - 100,
    )


def _busy_slots(endpoint: Endpoint) -> int:
    transport = httpx.HTTPTransport(uds=endpoint.socket_path) if endpoint.socket_path else None
    key = Path(endpoint.key_file).read_text().strip() if endpoint.key_file else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(transport=transport, headers=headers, trust_env=False) as client:
        rows = client.get(f"{endpoint.base_url}/slots").json()
    return sum(1 for row in rows if row["is_processing"])


KINDS = [
    pytest.param("llama.cpp", marks=pytest.mark.real),
    pytest.param("llama-cpp-python", marks=pytest.mark.real),
    "scripted",
    pytest.param("server", marks=pytest.mark.real),
    pytest.param("remote", marks=pytest.mark.real),
    pytest.param("vllm", marks=pytest.mark.vllm),
]


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Case:
    """Every kind of engine that the contract holds for."""
    return _case(request, tiny_models)


@pytest.fixture(params=[kind for kind in KINDS if kind != "scripted"])
def thinking(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Case:
    """The kinds of engine in which a model decides what is said."""
    return _case(request, tiny_models)


@pytest.fixture(params=[pytest.param("llama.cpp", marks=pytest.mark.real), "scripted"])
def embedding(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Case:
    """The kinds of engine that embed; that of vLLM is in `tests/vllm`, as a server of its own."""
    if request.param == "scripted":
        return _scripted_case()
    placed = placement(embeddings=True)
    case = replace(_llama_case(tiny_models), placed=placed)
    return replace(case, make=lambda folder: llama(tiny_models["embedder"], folder))


def _case(request: pytest.FixtureRequest, models: dict[str, Path]) -> Case:
    if request.param == "llama.cpp":
        return _llama_case(models)
    if request.param == "server":
        return _server_case(models)
    if request.param == "llama-cpp-python":
        return _binding_case(models)
    if request.param == "scripted":
        return _scripted_case()
    if request.param == "remote":
        return _far_llama_case(request.getfixturevalue("far_llama"))
    return _vllm_case(request.getfixturevalue("far_vllm"))
