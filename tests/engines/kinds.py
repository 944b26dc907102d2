"""Every kind of engine as the contract starts it: the real thing, or its documented shapes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import pytest

from backends.base import Capabilities, Engine
from backends.kinds import Verb
from backends.llama.binaries import find_binary, library_env
from backends.openai import RemoteEngine
from backends.python.python_engine import PythonEngine, WorkerSpec
from backends.scripted import Script, ScriptedEngine
from backends.server.command import ServerSpec
from backends.server.server_engine import ServerEngine
from backends.vllm.vllm_engine import VllmEngine, VllmSpec
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from tests.engines.contract import Calls, Case
from tests.engines.far_servers import FarServer, llama_command
from tests.engines.support import asked, binding, gauge, llama, placement
from tests.engines.templates import TOOLS, with_template
from tools import vllm_server
from tools.vllm_server import CONTEXT, SLOTS, vllm_model, vllm_python

ROOMY: Final = placement(n_ctx=8192, extra=with_template(TOOLS))
"""More context than an engine fills while a test looks, and a chat template with a place for tools."""
_USER_CODE: Final = Path(__file__).with_name("user_code")
VLLM_HERE: Final = Placement(
    EngineArgs(n_ctx=1024, slots=2, extra=tuple(vllm_server.TOOLS)),
    {HOST: Footprint(weights_bytes=8 << 20, kv_bytes=16 << 20, compute_bytes=2 << 30)},
    "files",
)


async def _busy_slots(engine: Engine) -> int:
    rows = asked(engine.endpoint, "/slots").json()
    return sum(1 for row in rows if row["is_processing"])


async def _running_at_vllm(engine: Engine) -> int:
    return gauge(engine.endpoint, "vllm:num_requests_running")


async def _of_script(engine: Engine) -> int:
    return cast("ScriptedEngine", engine).active_requests


def llama_cpp(model: Path) -> Case:
    """A llama-server of ours."""
    return Case("llama.cpp", lambda folder: llama(model, folder), _busy_slots, ROOMY)


def llama_cpp_python(model: Path) -> Case:
    """A worker over llama-cpp-python."""
    return Case(
        "llama-cpp-python",
        lambda folder: binding(model, folder),
        _busy_slots,
        placement(n_ctx=8192, binding=True),
    )


def python(folder: Path) -> Case:
    """A worker with a model of the user's, which notes in a folder what it works on."""
    code = _USER_CODE / "counting.py"
    spec = WorkerSpec("counting:Words", {"folder": str(folder)}, cwd=_USER_CODE, files=(code,))

    async def busy(_engine: Engine) -> int:
        return len(list(folder.iterdir()))

    return Case(
        "python",
        lambda runtime: PythonEngine(spec, "own", runtime),
        busy,
        replace(ROOMY, source="guess"),
        talk=Calls,
        long=50_000,
    )


def server(model: Path, can: frozenset[Verb] = frozenset(["chat", "stream"])) -> Case:
    """llama-server as any program of the user: on a port that it is given, with a key."""
    placed = placement(embeddings=True) if "embed" in can else ROOMY

    def made(folder: Path) -> Engine:
        argv = llama_command(model, "own", folder, placed.args)
        argv += ["--port", "{port}", "--api-key-file", "{key_file}"]
        env = library_env(find_binary("llama-server"))
        spec = ServerSpec(tuple(argv), "own", can, ready="/health", files=(model,), env=env)
        return ServerEngine(spec, "own", folder)

    return Case("server", made, _busy_slots, replace(placed, source="guess"))


def scripted() -> Case:
    """The public fake."""
    script = tuple(f"word{number} " for number in range(50_000))
    return Case(
        "scripted",
        lambda folder: ScriptedEngine("scripted", folder, Script(tokens=script)),
        _of_script,
        ROOMY,
        slots=None,
        long=50_000,
    )


def vllm_here() -> Case:
    """A vLLM that keepwarm starts."""

    def made(folder: Path) -> Engine:
        model = vllm_model()
        spec = VllmSpec(model, tuple(model.iterdir()), str(vllm_python()))
        return VllmEngine(spec, "own", folder)

    return Case(
        "vllm here",
        made,
        _running_at_vllm,
        VLLM_HERE,
        slots=VLLM_HERE.args.slots,
        long=CONTEXT - 100,
    )


def _far(
    server: FarServer, busy: Callable[[Engine], Awaitable[int]], *, embeds: bool = False
) -> Case:
    far = server.endpoint()
    can = Capabilities(embeddings=embeds)
    return Case(
        far.backend,
        lambda _folder: RemoteEngine(replace(far, capabilities=can), check=True),
        busy,
        ROOMY,
        local=False,
        crash=lambda _engine: server.crash(),
        bury=server.stop,
    )


def openai(server: FarServer, *, embeds: bool = False) -> Case:
    """A llama-server of another user."""
    return _far(server, _busy_slots, embeds=embeds)


def vllm(server: FarServer) -> Case:
    """A vLLM of another user."""
    return replace(_far(server, _running_at_vllm), slots=SLOTS, long=CONTEXT - 100)


def ollama(server: FarServer) -> Case:
    """A server with the shapes of Ollama's documentation."""

    async def busy(_engine: Engine) -> int:
        return server.busy()

    return replace(_far(server, busy, embeds=True), slots=None, long=50_000)


def case_of(request: pytest.FixtureRequest) -> Case:
    """The kind that a parametrised fixture names."""
    name: str = request.param
    if (make := _FAR.get(name)) is not None:
        return make(request.getfixturevalue(f"far_{'llama' if name == 'openai' else name}"))
    if (of_model := _OF_A_MODEL.get(name)) is not None:
        return of_model(request.getfixturevalue("tiny_models")["producer"])
    if name == "python":
        return python(request.getfixturevalue("tmp_path_factory").mktemp("runs"))
    return vllm_here() if name == "vllm here" else scripted()


_FAR: Final = {"vllm": vllm, "ollama": ollama, "openai": openai}
_OF_A_MODEL: Final = {
    "llama.cpp": llama_cpp,
    "llama-cpp-python": llama_cpp_python,
    "server": server,
}
