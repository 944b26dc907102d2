"""What a Python program meets first: both spellings of asynchronous streams, `repr`, `history`, hints."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from backends.scripted import Script
from shim import (
    AdmissionDenied,
    EmbeddingReply,
    InvalidRequest,
    Reply,
    Shim,
    UnknownModel,
    Usage,
)
from tests.processes import wait_until
from tests.shim.conftest import Stage

LONG = [f"{number} " for number in range(2000)]


async def _entered(shim: Shim) -> tuple[str, Reply]:
    async with shim.astream("a", "Hello.") as stream:
        return "".join([str(piece) async for piece in stream]), stream.reply


async def _awaited(shim: Shim) -> tuple[str, Reply]:
    stream = await shim.astream("a", "Hello.")
    return "".join([str(piece) async for piece in stream]), stream.reply


async def _both(shim: Shim) -> tuple[str, Reply]:
    async with await shim.astream("a", "Hello.") as stream:
        return "".join([str(piece) async for piece in stream]), stream.reply


async def _iterated(shim: Shim) -> tuple[str, Reply]:
    stream = shim.astream("a", "Hello.")
    return "".join([str(piece) async for piece in stream]), stream.reply


async def _as_a_task(shim: Shim) -> tuple[str, Reply]:
    stream = await asyncio.create_task(shim.astream("a", "Hello."))
    return "".join([str(piece) async for piece in stream]), stream.reply


SPELLINGS = [_entered, _awaited, _both, _iterated, _as_a_task]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_asynchronous_stream_is_spelled_as_one_likes(
    stage: Stage, spelling: Callable[[Shim], Any]
) -> None:
    """`async with`, `async for`, `await`, and two of them: the pieces, the reply, and the lease back."""
    text, reply = asyncio.run(spelling(stage.shim))
    assert text == reply.content == "one two three"
    assert stage.lease_count() == 0


@pytest.mark.parametrize("spelling", ["with", "for", "aclose"])
def test_an_asynchronous_stream_that_is_left_early_holds_nothing(
    stage: Stage, spelling: str
) -> None:
    """However it was begun; and there is no whole reply."""
    stage.scripts["a"] = Script(tokens=LONG)

    async def leave() -> None:
        stream = stage.shim.astream("a", "Hello.")
        if spelling == "with":
            async with stream as begun:
                await anext(begun)
        else:
            async for _ in stream:
                break
            with pytest.raises(InvalidRequest, match="not at its end"):
                _ = stream.reply
        if spelling == "aclose":
            await stream.aclose()
        else:
            del stream
        gc.collect()
        assert await asyncio.to_thread(wait_until, lambda: stage.lease_count() == 0, 10)

    asyncio.run(leave())


def test_an_asynchronous_stream_that_is_closed_unused_asks_for_nothing(stage: Stage) -> None:
    """And leaves no warning of a coroutine that was not awaited; there is no reply."""

    async def unused() -> None:
        stream = stage.shim.astream("a", "Hello.")
        with pytest.raises(InvalidRequest, match="not at its end"):
            _ = stream.reply
        await stream.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(unused())
    assert stage.engines == []


def test_a_shim_is_a_context_manager_of_event_loops(stage: Stage) -> None:
    """It is closed at the end, and calls are refused from then on."""

    async def main() -> Shim:
        async with Shim(stage.shim.config, factory=stage.make) as shim:
            assert (await shim.achat("a", "Hello.")).content == "one two three"
        return shim

    shim = asyncio.run(main())
    with pytest.raises(InvalidRequest, match="closed"):
        shim.chat("a", "Hello.")


def test_the_repr_of_a_reply_is_short_and_useful() -> None:
    """A line of a terminal: the beginning of the text, why it ended, tokens and time."""
    usage = Usage(prompt_tokens=9, completion_tokens=700)
    reply = Reply("m", "word " * 400, finish_reason="length", usage=usage, total_s=1.234)
    assert repr(reply) == (
        f"Reply(model='m', content={'word ' * 12 + '...'!r}, finish_reason='length', "
        "700 tokens in 1.23 s)"
    )
    called = Reply("m", "", tool_calls=({}, {}), finish_reason="tool_calls", warnings=("odd",))
    assert "2 tool calls" in repr(called)
    assert "warnings=('odd',)" in repr(called)
    vectors = EmbeddingReply("e", ((0.0,) * 384,) * 1000, total_s=0.5)
    assert repr(vectors) == "EmbeddingReply(model='e', 1000 vectors of 384, 0.50 s)"
    assert "0 vectors of 0" in repr(EmbeddingReply("e", ()))


def test_the_history_tells_calls_and_failures_without_texts(stage: Stage) -> None:
    """In their order: what each took, what it waited for, and why it failed."""
    shim = stage.shim
    shim.chat("a", "A secret question.")
    with shim.stream("a", "Hi.") as stream:
        list(stream)
    shim.embed("a", ["x", "y"])
    stage.scripts["b"] = Script(load="fail")
    with pytest.raises(Exception, match="told not to"):
        shim.chat("b", "Hi.")
    first, second, third, failed = shim.history()
    assert (first.model, first.operation, first.finish_reason) == ("a", "chat", "stop")
    assert first.residency.cold
    assert not second.residency.cold
    assert second.ttft_s is not None
    assert second.total_s >= second.ttft_s
    assert third.operation == "embeddings"
    assert failed.error is not None
    assert failed.error.startswith("LoadFailed: ")
    assert first.started <= second.started <= third.started <= failed.started
    assert "secret" not in repr(shim.history())
    assert "one two" not in repr(shim.history())


def test_the_history_is_bounded(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that runs for weeks keeps the last calls alone."""
    monkeypatch.setattr("shim.calls.session.CALLS_KEPT", 3)
    with Shim(stage.shim.config, factory=stage.make) as shim:
        for _ in range(5):
            shim.chat("a", "Hi.")
        assert len(shim.history()) == 3


HINTS: list[Callable[[Shim, str], object]] = [
    lambda shim, model: shim.unload(model),
    lambda shim, model: shim.release(model),
    lambda shim, model: shim.unpin(model),
]


@pytest.mark.parametrize("hint", HINTS)
def test_hints_about_a_remote_model_say_where_it_runs(
    stage: Stage, hint: Callable[[Shim, str], object]
) -> None:
    """Nothing of it is here; an unknown model is named as that."""
    with pytest.raises(InvalidRequest, match=r"remote runs at http://127\.0\.0\.1:9: .* here to"):
        hint(stage.shim, "remote")
    with pytest.raises(UnknownModel, match="'c'"):
        hint(stage.shim, "c")


@pytest.mark.parametrize("hint", HINTS[:2])
def test_a_pinned_model_is_neither_unloaded_nor_released(
    stage: Stage, hint: Callable[[Shim, str], object]
) -> None:
    """The error says that it is pinned; once it is unpinned, the hint is followed."""
    stage.shim.pin("a")
    with pytest.raises(AdmissionDenied, match=r"a is pinned and stays"):
        hint(stage.shim, "a")
    stage.shim.unpin("a")
    hint(stage.shim, "a")
