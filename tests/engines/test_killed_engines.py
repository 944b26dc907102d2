"""A real engine that hangs and is then killed, as the keeper does it: its callers know at once."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.base import Endpoint
from backends.llama.engine import LlamaServerEngine
from backends.openai import AsyncTransport, SyncTransport
from backends.openai.connections.network import AsyncBoundedStream, BoundedStream
from budget.errors import EngineDied
from tests.engines.support import ENDLESS, SHIFTS, llama, placement, running


async def _whole(endpoint: Endpoint, freeze: Callable[[], None], *, is_async: bool) -> None:
    freeze()
    if is_async:
        await AsyncTransport().chat(endpoint, ENDLESS)
    else:
        await asyncio.to_thread(SyncTransport().chat, endpoint, ENDLESS)


async def _pieces(endpoint: Endpoint, freeze: Callable[[], None], *, is_async: bool) -> None:
    if is_async:
        stream = await AsyncTransport().stream(endpoint, ENDLESS)
        await anext(stream)
        freeze()
        async for _ in stream:
            pass
    else:
        blocking = await asyncio.to_thread(SyncTransport().stream, endpoint, ENDLESS)
        await asyncio.to_thread(next, blocking)
        freeze()
        await asyncio.to_thread(list, blocking)


@pytest.mark.real
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
def test_a_caller_of_a_hung_engine_hears_of_its_end(
    tiny_models: dict[str, Path],
    runtime_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_async: bool,
    streamed: bool,
) -> None:
    """The engine is stopped in mid-answer or before it, and killed once its caller waits."""
    waits = threading.Event()
    kind: Any = AsyncBoundedStream if is_async else BoundedStream
    read = kind.read

    def reading(*arguments: Any, **named: Any) -> Any:
        waits.set()
        return read(*arguments, **named)

    async def scenario() -> None:
        engine = llama(tiny_models["producer"], runtime_dir)
        async with running(engine, placement(**SHIFTS)):
            assert isinstance(engine, LlamaServerEngine)
            pid = engine.pid or 0

            def freeze() -> None:
                os.kill(pid, signal.SIGSTOP)
                monkeypatch.setattr(kind, "read", reading)

            ask = _pieces if streamed else _whole
            asking = asyncio.ensure_future(ask(engine.endpoint, freeze, is_async=is_async))
            assert await asyncio.to_thread(waits.wait, 60)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(EngineDied, match="ended while it was needed"):
                await asyncio.wait_for(asking, 60)

    asyncio.run(scenario())
