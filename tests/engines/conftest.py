"""Engines under the contract, and the real servers on loopback ports behind the remote ones."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines import kinds
from tests.engines.contract import KINDS, Case, Running
from tests.engines.far_servers import FarServer, far_llama, far_ollama, far_vllm
from tests.engines.support import placement


@pytest.fixture(scope="session", name="far_llama")
def far_llama_server(tiny_models: dict[str, Path]) -> Iterator[FarServer]:
    """A real llama-server on a free loopback port, as another user would run it."""
    server = FarServer(lambda folder: far_llama(tiny_models["producer"], folder, kinds.ROOMY.args))
    yield server
    server.stop()


@pytest.fixture(scope="session", name="far_vllm")
def far_vllm_server() -> Iterator[FarServer]:
    """A real vLLM on the CPU, on a free loopback port."""
    server = FarServer(far_vllm)
    yield server
    server.stop()


@pytest.fixture(scope="session", name="far_ollama")
def far_ollama_server() -> Iterator[FarServer]:
    """A server with Ollama's shapes."""
    server = FarServer(far_ollama)
    yield server
    server.stop()


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind of engine that the contract holds for."""
    return kinds.case_of(request)


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """An engine of every kind, which the tests of a file put their questions to."""
    yield from _run(kinds.case_of(request))


EMBEDDERS = [
    *(pytest.param(name, marks=pytest.mark.real) for name in ("llama.cpp", "llama-cpp-python")),
    *(pytest.param(name, marks=pytest.mark.real) for name in ("server", "openai")),
    *("ollama", "scripted"),
]


@pytest.fixture(scope="module", params=EMBEDDERS)
def embedding(request: pytest.FixtureRequest, tiny_models: dict[str, Path]) -> Iterator[Running]:
    """An engine that embeds; vLLM's is in `tests/vllm`, as a server of its own."""
    model, placed = tiny_models["embedder"], placement(embeddings=True)
    far = FarServer(lambda folder: far_llama(model, folder, placed.args))
    match request.param:
        case "llama.cpp":
            made = replace(kinds.llama_cpp(model), placed=placed)
        case "llama-cpp-python":
            args = placement(embeddings=True, binding=True)
            made = replace(kinds.llama_cpp_python(model), placed=args)
        case "server":
            made = kinds.server(model, can=frozenset(["embed"]))
        case "openai":
            made = kinds.openai(far, embeds=True)
        case _:
            made = kinds.case_of(request)
    yield from _run(made)
    far.stop()


def _run(case: Case) -> Iterator[Running]:
    """Start an engine on a loop of its own; end both afterwards."""
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="kw-") as folder:
        engine = case.make(Path(folder))

        async def started() -> Running:
            await engine.start(case.placed, lambda _fraction: None)
            return Running(case, engine, loop)

        async def ended(running: Running | None) -> None:
            if running is not None:
                await running.aclose()
            await engine.stop(grace_s=2.0)

        found = None
        try:
            found = loop.run_until_complete(started())
            yield found
        finally:
            loop.run_until_complete(ended(found))
            loop.close()
