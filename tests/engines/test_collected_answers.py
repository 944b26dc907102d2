"""Whole answers of llama-servers with several slots: asked for as streams, and put together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai import AsyncTransport, ChatRequest, Completion, SyncTransport
from budget.errors import DeadlineExceeded, KeepwarmError
from tests.engines.support import ENDLESS, SHIFTS, llama, placement, running, until
from tests.engines.templates import TOOLS, with_template

pytestmark = pytest.mark.real

_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"at": {"enum": ["here", "there"]}}},
    },
}
_SCHEMA = {"type": "object", "properties": {"mark": {"type": "integer"}}, "required": ["mark"]}
_HELD = 'root ::= "a STO" "Q b" "STOP" "c"'
_KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "a stop that begins twice": {"grammar": _HELD, "stop": "STOP"},
    "a schema": {"json_schema": _SCHEMA},
    "a call": {"tools": [_TOOL], "tool_choice": "required"},
    "probabilities": {"logprobs": True, "top_logprobs": 2, "stop": "e"},
    "probabilities of a schema": {"logprobs": True, "json_schema": _SCHEMA},
    "probabilities with a stop": {"logprobs": True, "grammar": _HELD, "stop": "STOP"},
}


def _said(answer: Completion) -> Completion:
    """What does not change from one time to the next: no milliseconds, and no made-up ids."""
    calls = tuple({**call, "id": bool(call.get("id"))} for call in answer.tool_calls)
    return replace(answer, timings=None, tool_calls=calls)


def test_an_answer_that_is_put_together_is_the_whole_answer(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """Texts, calls of tools, shapes, probabilities, figures."""

    async def scenario() -> dict[str, tuple[Completion, Completion]]:
        found = {}
        async with running(
            llama(tiny_models["producer"], runtime_dir),
            placement(slots=2, extra=with_template(TOOLS)),
        ) as engine:
            assert engine.endpoint.slots == 2
            client = AsyncTransport()
            for kind, options in _KINDS.items():
                fixed = {"max_tokens": 48, "temperature": 0, "seed": 1, "cache_prompt": False}
                request = ChatRequest("Say where.", {**fixed, "slot": 0, **options})
                ways = [replace(engine.endpoint, slots=1), engine.endpoint]
                whole, collected = [await client.chat(way, request) for way in ways]
                found[kind] = (whole, collected)
            await client.aclose()
        return found

    for kind, (whole, collected) in asyncio.run(scenario()).items():
        assert whole.timings is not None
        assert collected.timings is not None
        assert whole.timings.predicted_n == collected.timings.predicted_n, kind
        assert _said(collected) == _said(whole), kind


async def _cancelled(endpoint: Endpoint, begun: Callable[[], Awaitable[bool]]) -> None:
    asking = asyncio.ensure_future(AsyncTransport().chat(endpoint, ENDLESS))
    assert await begun()
    asking.cancel()
    await asyncio.wait({asking})


async def _too_late(endpoint: Endpoint, begun: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 0.5
    chat = asyncio.to_thread(SyncTransport().chat, endpoint, ENDLESS, deadline=deadline)
    asking = asyncio.ensure_future(chat)
    assert await begun()
    with pytest.raises(DeadlineExceeded):
        await asking


async def _closed(endpoint: Endpoint, begun: Callable[[], Awaitable[bool]]) -> None:
    client = SyncTransport()
    asking = asyncio.ensure_future(asyncio.to_thread(client.chat, endpoint, ENDLESS))
    assert await begun()
    client.close()
    with pytest.raises(KeepwarmError):
        await asking


@pytest.mark.parametrize("given_up", [_cancelled, _too_late, _closed])
def test_a_whole_chat_that_is_given_up_beside_a_stream_generates_no_more(
    tiny_models: dict[str, Path],
    runtime_dir: Path,
    given_up: Callable[[Endpoint, Callable[[], Awaitable[bool]]], Awaitable[None]],
) -> None:
    """What comes of the stream keeps llama-server from looking after the caller of a whole answer."""

    async def scenario() -> bool:
        engine = llama(tiny_models["producer"], runtime_dir)
        async with running(engine, placement(slots=2, **SHIFTS)):

            async def busy(count: int) -> bool:
                rows = await engine._slots().rows()
                return sum(bool(row["is_processing"]) for row in rows) == count

            async with await AsyncTransport().stream(engine.endpoint, ENDLESS) as stream:
                await anext(stream)
                await given_up(engine.endpoint, lambda: until(lambda: busy(2)))
                return await until(lambda: busy(1), within_s=10)

    assert asyncio.run(scenario())


def test_a_whole_chat_that_is_given_up_alone_generates_no_more(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """With one slot llama-server sees it by itself, and no stream is needed.

    Its log is looked at, because questions about slots would keep it from looking.
    """

    async def scenario() -> bool:
        engine = llama(tiny_models["producer"], runtime_dir)
        async with running(engine, placement(**SHIFTS)):
            assert engine.endpoint.slots == 1

            async def said(words: str) -> bool:
                return any(words in line for line in engine.log_tail)

            await _cancelled(engine.endpoint, lambda: until(lambda: said("init sampler")))
            return await until(lambda: said("cancel task"), within_s=10)

    assert asyncio.run(scenario())
