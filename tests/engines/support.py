"""What the engine tests share: placements, running engines, bounded waiting for a condition."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from backends.base import Endpoint, Engine
from backends.llama.binding.binding_engine import LlamaBindingEngine
from backends.llama.engine import LlamaServerEngine
from backends.openai import ChatRequest
from budget.footprint import HOST, EngineArgs, Footprint, Placement
from tests.processes import LIMIT_S

ENDLESS = ChatRequest("Go on.", {"max_tokens": 1_000_000_000, "extra": {"ignore_eos": True}})
"""It goes on until its caller leaves it, however quick the machine is, at an engine that shifts."""
SHIFTS: dict[str, Any] = {"n_ctx": 1024, "extra": ("--context-shift",)}
"""Arguments of a placement whose context drops its start when it is full."""
HELLO = ChatRequest("Say hello.", {"max_tokens": 8, "temperature": 0.0, "seed": 1})


def placement(**args: Any) -> Placement:
    """A small placement on the host; keyword arguments are those of `EngineArgs`."""
    small: dict[str, Any] = {"n_ctx": 512, "n_batch": 512, "n_ubatch": 128}
    return Placement(
        EngineArgs(**(small | args)), {HOST: Footprint(weights_bytes=4 << 20)}, "closed-form"
    )


@asynccontextmanager
async def running(engine: Engine, placed: Placement | None = None) -> AsyncIterator[Engine]:
    """The engine, started; stopped at the end whatever happens."""
    try:
        await engine.start(placed or placement(), lambda _fraction: None)
        yield engine
    finally:
        await engine.stop(grace_s=2.0)


def llama(model: Path, runtime_dir: Path, **options: Any) -> LlamaServerEngine:
    """A llama.cpp engine with one thread, so that tests share the machine."""
    return LlamaServerEngine(model, model.stem, runtime_dir, threads=1, **options)


def binding(model: Path, runtime_dir: Path, **options: Any) -> LlamaBindingEngine:
    """A worker over llama-cpp-python, with one thread."""
    return LlamaBindingEngine(model, model.stem, runtime_dir, threads=1, **options)


async def until(condition: Callable[[], Awaitable[bool]], *, within_s: float = LIMIT_S) -> bool:
    """Poll a condition of another process, for a bounded time; whether it came true."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if await condition():
            return True
        await asyncio.sleep(0.01)
    return False


def listening(log: Path) -> str:
    """The URL of a llama-server on loopback, by its log; empty before it listens."""
    hit = re.search(r"listening on (http://127\.0\.0\.1:\d+)", log.read_text(errors="replace"))
    return hit[1] if hit else ""


def asked(endpoint: Endpoint, path: str) -> httpx.Response:
    """The answer of an engine, of ours or elsewhere, to a question beside the protocol."""
    transport = httpx.HTTPTransport(uds=endpoint.socket_path) if endpoint.socket_path else None
    key = Path(endpoint.key_file).read_text().strip() if endpoint.key_file else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(transport=transport, headers=headers, trust_env=False) as client:
        return client.get(f"{endpoint.base_url}{path}")


def gauge(endpoint: Endpoint, name: str) -> int:
    """The value of a metric of a server, by the lines that it shows to Prometheus."""
    lines = asked(endpoint, "/metrics").text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")))
