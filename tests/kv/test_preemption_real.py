"""Answers that are interrupted and go on, token by token, on real llama-server engines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shim import Reply, Shim
from shim.keeper.shell.yielding import Generated
from tests.kv.support import QUESTIONS, config, saved_files
from tests.processes import wait_until

pytestmark = pytest.mark.real

LENGTH = 48
SAID: dict[str, Any] = {"max_tokens": LENGTH, "temperature": 0}


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for what is asked beside a stream."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


def uninterrupted(settings: dict[str, Any]) -> Reply:
    """The answer of an engine that has nothing else to do."""
    with Shim(settings) as shim:
        return shim.chat("a", QUESTIONS[0], **SAID)


def urgent(shim: Shim, pool: ThreadPoolExecutor, model: str) -> Future[Reply]:
    """A request of high priority that waits, or has been served already."""
    asked = pool.submit(shim.chat, model, "Quick!", max_tokens=3, priority=9)
    assert wait_until(lambda: bool(shim.status()["queue"]) or asked.done())
    return asked


def interrupted(shim: Shim, pool: ThreadPoolExecutor, other: str) -> Reply:
    """The same answer, interrupted after some tokens for a request of another priority."""
    with shim.stream("a", QUESTIONS[0], priority=-1, **SAID) as stream:
        for _ in range(8):
            next(stream)
        quick = urgent(shim, pool, other)
        for _ in stream:
            pass
    assert quick.result(60).usage.completion_tokens > 0
    return stream.reply


def test_an_interrupted_answer_has_the_same_tokens(
    chat_model: Path, kv_folder: Path, pool: ThreadPoolExecutor
) -> None:
    """One slot, temperature 0: another request used the slot in between, and nothing shows."""
    settings = config({"a": {"path": str(chat_model)}}, kv_folder)
    whole = uninterrupted(settings)
    with Shim(settings) as shim:
        reply = interrupted(shim, pool, "a")
        assert saved_files(kv_folder) == [], "the state of the interrupted answer is gone with it"
    assert reply.resumed == 1
    assert reply.content == whole.content
    assert reply.finish_reason == whole.finish_reason == "length"
    assert reply.usage == whole.usage


def test_an_engine_that_has_not_evaluated_its_last_token_says_the_same(
    chat_model: Path, kv_folder: Path, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stopped before the token that it had just sent was in its KV cache: that one comes again."""
    settings = config({"a": {"path": str(chat_model)}}, kv_folder)
    whole = uninterrupted(settings)

    def one_short(generated: Generated, slot: tuple[int, ...]) -> list[int]:
        return list(slot[: generated.prompt_tokens + generated.tokens - 1])

    monkeypatch.setattr(Generated, "so_far", one_short)
    with Shim(settings) as shim:
        reply = interrupted(shim, pool, "a")
    assert reply.resumed == 1
    assert reply.content == whole.content
    assert reply.usage == whole.usage


def test_an_answer_whose_model_had_to_leave_has_the_same_tokens(
    chat_model: Path, tiny_models: dict[str, Path], kv_folder: Path, pool: ThreadPoolExecutor
) -> None:
    """The engine ends, another one is loaded, and the first comes back with its KV state."""
    models = {"a": {"path": str(chat_model)}, "b": {"path": str(tiny_models["producer"])}}
    settings = config(models, kv_folder)
    whole = uninterrupted(settings)
    settings["budget"]["limit"] = "30MB"
    with Shim(settings) as shim:
        reply = interrupted(shim, pool, "b")
    assert reply.resumed == 1
    assert reply.residency.cold
    assert "b" in reply.residency.evicted
    assert reply.content == whole.content
    assert reply.usage == whole.usage


def test_an_awaited_answer_has_the_same_tokens(
    tiny_models: dict[str, Path], kv_folder: Path, pool: ThreadPoolExecutor
) -> None:
    """As on a thread."""
    settings = config({"a": {"path": str(tiny_models["classifier"])}}, kv_folder)
    whole = uninterrupted(settings)

    async def run(shim: Shim) -> Reply:
        async with await shim.astream("a", QUESTIONS[0], priority=-1, **SAID) as stream:
            for _ in range(8):
                await anext(stream)
            quick = await asyncio.to_thread(urgent, shim, pool, "a")
            async for _ in stream:
                pass
            assert quick.result(60)
            return stream.reply

    with Shim(settings) as shim:
        reply = asyncio.run(run(shim))
    assert reply.resumed == 1
    assert reply.content == whole.content


def test_with_several_slots_it_goes_on_and_says_so(
    tiny_models: dict[str, Path], kv_folder: Path, pool: ThreadPoolExecutor
) -> None:
    """Which slot it was is not known, so it goes on from its text; the length is what was asked."""
    entry = {"path": str(tiny_models["classifier"]), "slots": 2, "context": 4096}
    with (
        Shim(config({"a": entry}, kv_folder)) as shim,
        shim.stream("a", "Beside.", max_tokens=1000, temperature=0) as beside,
    ):
        next(beside)
        reply = interrupted(shim, pool, "a")
    assert reply.resumed == 1
    assert reply.usage.completion_tokens == LENGTH
    assert reply.finish_reason == "length"
