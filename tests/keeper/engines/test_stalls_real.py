"""What a real llama-server shows of itself, and what is made of it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.llama.engine import LlamaServerEngine
from backends.openai import AsyncTransport, ChatRequest
from shim.keeper.engines.stall_detection import StallDetector
from tests.engines.support import llama, placement, running, until
from tests.engines.templates import SPINS, with_template

pytestmark = pytest.mark.real

LONG = ChatRequest("many words " * 400, {"max_tokens": 1})
GO = ChatRequest("go", {"max_tokens": 1})
ENDLESS = ChatRequest("Go on.", {"max_tokens": 3000, "extra": {"ignore_eos": True}})


@asynccontextmanager
async def asked(engine: LlamaServerEngine, request: ChatRequest) -> AsyncIterator[None]:
    """A request is under way."""
    client = AsyncTransport()
    task = asyncio.ensure_future(client.chat(engine.endpoint, request))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.aclose()


def looking(
    engine: LlamaServerEngine, detector: StallDetector, wanted: str, *, idle: bool = False
) -> Callable[[], Awaitable[bool]]:
    """One look after another: whether the engine was seen like this three times in a row."""
    seen: list[bool] = []

    async def look() -> bool:
        await asyncio.sleep(0.1)
        signs = await engine.signs(ask=True)
        assert signs is not None
        detector.look(signs, leases=1, asked=True, now=time.monotonic())
        seen.append(detector.condition == wanted and (detector.idle_since is not None) is idle)
        return len(seen) >= 3 and all(seen[-3:])

    return look


def test_the_conditions_of_a_real_engine(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """At rest, on a long prompt, answering, in an endless template, stopped: each is recognised."""

    async def scenario() -> None:
        engine = llama(tiny_models["producer"], runtime_dir)
        placed = placement(
            n_ctx=8192, n_batch=8192, n_ubatch=128, extra=with_template(SPINS), slots=1
        )
        async with running(engine, placed):
            detector = StallDetector()
            assert await until(looking(engine, detector, "fine", idle=True), within_s=20.0)
            async with asked(engine, LONG):
                assert await until(looking(engine, detector, "computing"), within_s=20.0)
            async with asked(engine, ENDLESS):
                assert await until(looking(engine, detector, "fine"), within_s=30.0)
            async with asked(engine, GO):
                assert await until(looking(engine, detector, "spinning"), within_s=20.0)
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGSTOP)
                assert await until(looking(engine, detector, "stopped"), within_s=10.0)
                engine.kill()

    asyncio.run(scenario())


def test_an_engine_without_a_socket_is_not_reachable(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Neither when its file is gone, nor when nothing listens behind it; a dead one has no signs."""

    async def scenario() -> None:
        engine = llama(tiny_models["classifier"], runtime_dir)
        async with running(engine):
            socket = Path(engine.endpoint.socket_path or "")
            socket.rename(socket.with_suffix(".away"))
            for ask in (False, True):
                signs = await engine.signs(ask=ask)
                assert signs is not None
                assert not signs.reachable
            engine.kill()
            await engine.wait_death()
            assert await engine.signs(ask=True) is None

    asyncio.run(scenario())
