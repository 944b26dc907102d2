"""What a real llama-server shows of itself, and what is made of it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from backends.llama.engine import LlamaServerEngine
from backends.machine.processes import process_state
from backends.openai import AsyncTransport, ChatRequest
from shim.keeper.engines.stall_detection import StallDetector
from tests.engines.support import llama, placement, running, until
from tests.engines.templates import SPINS, with_template

pytestmark = pytest.mark.real

LONG = ChatRequest("many words " * 400, {"max_tokens": 1})
TENTHS = itertools.count()
ANSWER = ChatRequest("Go on.", {"max_tokens": 5000, "extra": {"ignore_eos": True}})
"""It comes to its end: its slot is to be free for the next request, also where its caller has left."""
GO = ChatRequest("go", {"max_tokens": 1})


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
    """One look after another: whether the engine was seen like this three times in a row.

    A long prompt comes to its end: once is enough. By the detector's clock a tenth of a second lies between
    two looks: on a busy machine the engine gets less than its share of the real time.
    """
    times = 1 if wanted == "computing" else 3
    seen: list[bool] = []
    used_s = [0.0]

    async def worked() -> bool:
        state = process_state(engine.pid or 0)
        return state is not None and state.cpu_s >= used_s[-1] + 0.02

    async def look() -> bool:
        await asyncio.sleep(0.1)
        if wanted in ("computing", "spinning"):
            # On a busy machine a process that computes may get no time between two looks.
            assert await until(worked)
        signs = await engine.signs(ask=True)
        assert signs is not None
        used_s.append(signs.cpu_s or 0.0)
        detector.look(signs, leases=1, asked=True, now=next(TENTHS) / 10)
        seen.append(detector.condition == wanted and (detector.idle_since is not None) is idle)
        return len(seen) >= times and all(seen[-times:])

    return look


def test_the_conditions_of_a_real_engine(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """At rest, on a long prompt, answering, in an endless template, stopped: each is recognised."""

    async def scenario() -> None:
        engine = llama(tiny_models["producer"], runtime_dir)
        placed = placement(
            n_ctx=8192,
            n_batch=8192,
            n_ubatch=128,
            extra=with_template(SPINS),
            slots=1,
        )
        async with running(engine, placed):
            detector = StallDetector()
            assert await until(looking(engine, detector, "fine", idle=True))
            async with asked(engine, LONG):
                assert await until(looking(engine, detector, "computing"))
            async with asked(engine, ANSWER):
                assert await until(looking(engine, detector, "fine"))
            async with asked(engine, GO):
                assert await until(looking(engine, detector, "spinning"))
                assert engine.pid is not None
                os.kill(engine.pid, signal.SIGSTOP)
                assert await until(looking(engine, detector, "stopped"))
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
