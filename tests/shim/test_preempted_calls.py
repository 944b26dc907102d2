"""Answers that are interrupted for requests of higher priority, on scripted engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai.protocol import ChatRequest, Delta, Timings
from backends.openai.resume import AnswerSoFar, can_resume, resume_body, tokens_to_repeat
from backends.openai.transport import Transport
from backends.scripted import Script
from shim import PromptTooLong, Reply, Shim
from shim.calls.call import Call
from shim.calls.streaming.interruption import to_yield
from shim.keeper.shell.yielding import Generated
from tests.processes import wait_until
from tests.shim.conftest import Stage

TOKENS = [f"word{number} " for number in range(40)]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for the request that is urgent."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@contextmanager
def another(stage: Stage, config: dict[str, Any]) -> Iterator[Stage]:
    """The same scripts under another configuration."""
    with Shim(config, factory=stage.make) as shim:
        yield replace(stage, shim=shim)


def urgent(stage: Stage, pool: ThreadPoolExecutor, model: str = "b") -> Future[Reply]:
    """A request of high priority that has come to wait."""
    asked = pool.submit(stage.shim.chat, model, "Quick!", priority=9)
    assert wait_until(lambda: bool(stage.shim.status()["queue"]))
    return asked


def test_a_stream_gives_way_and_goes_on(stage: Stage, pool: ThreadPoolExecutor) -> None:
    """Nothing is lost or said twice; the one that is urgent is served in between."""
    stage.scripts["b"] = Script(tokens=TOKENS)
    with stage.shim.stream("b", "Hello you.") as stream:
        pieces = [str(next(stream)) for _ in range(6)]
        quick = urgent(stage, pool)
        pieces += [str(piece) for piece in stream]
        assert quick.result(60).content == "".join(TOKENS)
    reply = stream.reply
    assert "".join(pieces) == reply.content == "".join(TOKENS)
    assert reply.resumed == 1
    assert reply.ttft_s is not None
    assert reply.residency.waited_s < reply.ttft_s < reply.total_s
    assert reply.finish_reason == "stop"
    assert reply.usage.completion_tokens == len(TOKENS)
    assert reply.usage.prompt_tokens == 2
    assert [("prompt" in r, bool(r.get("stream"))) for r in stage.engines[0].requests] == [
        (False, True), (False, False), (False, False), (True, True),
    ]  # fmt: skip
    assert stage.lease_count() == 0


def test_an_engine_that_left_for_another_one_comes_back_for_the_rest(
    stage: Stage, pool: ThreadPoolExecutor
) -> None:
    """Bytes are given way for like a slot is; `max_tokens` counts over the interruption."""
    stage.scripts["b"] = Script(tokens=TOKENS)
    config = stage.shim.config.to_mapping()
    config["budget"]["limit"] = "30MB"  # for either model, never for both
    with another(stage, config) as other:
        with other.shim.stream("b", "Hello.", max_tokens=20) as stream:
            pieces = [str(next(stream)) for _ in range(4)]
            quick = urgent(other, pool, "a")
            pieces += [str(piece) for piece in stream]
        assert quick.result(60).residency.evicted == ("b",)
    assert "".join(pieces) == "".join(TOKENS[:20])
    assert stream.reply.finish_reason == "length"
    assert stream.reply.residency.cold


def test_it_may_happen_more_than_once(stage: Stage, pool: ThreadPoolExecutor) -> None:
    """Counts go on from interruption to interruption."""
    stage.scripts["b"] = Script(tokens=TOKENS)
    with stage.shim.stream("b", "Hello.") as stream:
        for _ in range(3):
            next(stream)
            next(stream)
            quick = urgent(stage, pool)
            next(stream)
            assert quick.result(60)
        for _ in stream:
            pass
    assert stream.reply.content == "".join(TOKENS)
    assert stream.reply.resumed == 3
    assert stream.reply.usage.completion_tokens == len(TOKENS)


def test_whole_answers_in_the_background_give_way_too(
    stage: Stage, pool: ThreadPoolExecutor
) -> None:
    """A priority below 0 is streamed inside; others are asked whole and run to their end."""
    stage.scripts["b"] = Script(tokens=TOKENS)
    stage.shim.load("b")
    (engine,) = stage.engines
    gate = asyncio.Event()
    engine.script.token_gate = gate
    slow = pool.submit(stage.shim.chat, "b", "Hello.", priority=-1)
    assert wait_until(lambda: engine.active_requests == 1)
    quick = urgent(stage, pool)
    engine._server.get_loop().call_soon_threadsafe(gate.set)  # type: ignore[union-attr]
    assert slow.result(60).content == "".join(TOKENS)
    assert slow.result().resumed == 1
    assert quick.result(60).resumed == 0


def test_an_awaited_stream_gives_way_and_goes_on(stage: Stage, pool: ThreadPoolExecutor) -> None:
    """As the one on a thread."""
    stage.scripts["b"] = Script(tokens=TOKENS)

    async def run() -> Reply:
        async with await stage.shim.astream("b", "Hello.") as stream:
            for _ in range(5):
                await anext(stream)
            quick = await asyncio.to_thread(urgent, stage, pool)
            async for _ in stream:
                pass
            assert quick.result(60)
            return stream.reply

    reply = asyncio.run(run())
    assert reply.content == "".join(TOKENS)
    assert reply.resumed == 1


@pytest.mark.parametrize("options", [{"grammar": 'root ::= "x"'}, {"priority": 9}])
def test_what_cannot_or_need_not_yield_runs_to_its_end(
    stage: Stage, pool: ThreadPoolExecutor, options: dict[str, Any]
) -> None:
    """A grammar would begin anew; an equal priority waits its turn."""
    stage.scripts["b"] = Script(tokens=TOKENS)
    with stage.shim.stream("b", "Hello.", **options) as stream:
        next(stream)
        quick = urgent(stage, pool)
        for _ in stream:
            pass
    assert stream.reply.resumed == 0
    assert quick.result(60)


def test_an_interrupted_answer_that_fills_the_context_is_at_its_end(
    stage: Stage, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenised again, its text can have more tokens than were generated: no error in mid-answer."""

    async def too_long(*_: Any, **_named: Any) -> Any:
        raise PromptTooLong("the prompt has more tokens than the context")

    monkeypatch.setattr(Transport, "resume", too_long)
    stage.scripts["b"] = Script(tokens=TOKENS)
    with stage.shim.stream("b", "Hello you.") as stream:
        pieces = [str(next(stream)) for _ in range(6)]
        quick = urgent(stage, pool)
        pieces += [str(piece) for piece in stream]
        assert quick.result(60)
    said = "".join(pieces)
    assert said == stream.reply.content
    assert "".join(TOKENS).startswith(said)
    assert (stream.reply.finish_reason, stream.reply.resumed) == ("length", 1)
    assert stream.reply.usage.completion_tokens == len(said.split())
    assert stage.lease_count() == 0


def test_an_answer_that_goes_on_from_its_text_says_held_back_tokens_anew() -> None:
    """Tokens without text (half a character, the begin of a stop) count once, so that none is missing."""
    pieces = [
        Delta(content="Hi", timings=Timings(prompt_n=5, predicted_n=2)),
        Delta(timings=Timings(prompt_n=5, predicted_n=4)),
    ]
    progress = AnswerSoFar.of(pieces)
    assert (progress.tokens, progress.by_text().tokens) == (4, 2)
    assert progress.by_text().prompt_tokens == 5
    body = resume_body(
        Endpoint("http://m", "m", "llama.cpp"),
        ChatRequest("x", {"max_tokens": 10}),
        "xHi",
        progress.by_text(),
    )
    assert json.loads(body)["n_predict"] == 8


def test_it_can_be_switched_off(stage: Stage, pool: ThreadPoolExecutor) -> None:
    """`[budget] preempt = false`: the running request ends first."""
    config = stage.shim.config.to_mapping()
    config["budget"]["preempt"] = False
    stage.scripts["b"] = Script(tokens=TOKENS)
    with another(stage, config) as other:
        with other.shim.stream("b", "Hello.") as stream:
            next(stream)
            quick = urgent(other, pool)
            for _ in stream:
                pass
        assert stream.reply.resumed == 0
        assert quick.result(60)


@pytest.mark.parametrize(
    ("options", "resumed"),
    [
        ({}, True),
        ({"temperature": 0, "seed": 3, "max_tokens": 5, "stop": "x", "top_p": None}, True),
        ({"temperature": 0.7}, True),
        ({"temperature": 0.7, "seed": 3}, False),
        ({"seed": 3}, False),
        ({"json_schema": {}}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"grammar": "x"}, False),
        ({"tools": []}, False),
        ({"logprobs": True}, False),
        ({"extra": {"mirostat": 2}}, False),
        ({"slot": 1}, False),
    ],
)
def test_only_what_tokens_restore_is_interrupted(options: dict[str, Any], resumed: bool) -> None:
    """Everything else that shapes an answer has a state of its own."""
    assert can_resume(ChatRequest("Hello.", options)) is resumed


def test_pictures_in_messages_are_not_interrupted() -> None:
    """Their tokens are not text."""
    parts = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert not can_resume(ChatRequest(parts))


def test_an_answer_yields_only_where_it_can_go_on() -> None:
    """Not before its first token, not while it thinks, not at its end."""
    call = Call("m", ChatRequest("Hello.", {"max_tokens": 3}), {}, {}, remote=False)
    two, three = (Timings(prompt_n=5, cache_n=2, predicted_n=n) for n in (2, 3))
    said = Delta(content="Hi", timings=two)
    assert to_yield(call, [Delta(role="assistant")]) is None
    assert to_yield(call, [Delta(reasoning="Hm.", timings=two)]) is None
    assert to_yield(call, [said, Delta(content=" you", timings=three)]) is None
    assert to_yield(call, [said, Delta(finish_reason="stop")]) is None
    assert to_yield(call, [said]) == AnswerSoFar(two, "Hi", told=2)
    assert AnswerSoFar(two, "Hi").prompt_tokens == 7


@pytest.mark.parametrize(
    ("options", "text", "held", "repeat"),
    [
        ({}, "ab", [1, 2, 3, 4, 5], 0),
        ({"temperature": 0}, "ab", [1, 2, 3, 4], 1),
        ({"temperature": 0}, "a\u00e9", [1, 2, 3, 4], None),
        ({"temperature": 0}, "ab", [1, 2, 3], None),
        ({}, "ab", [1, 2, 3, 4], None),
        ({"temperature": 0}, "ab", None, None),
    ],
)
def test_a_token_that_the_engine_had_not_evaluated_is_said_again(
    options: dict[str, Any], text: str, held: list[int] | None, repeat: int | None
) -> None:
    """Only where the same one comes again: greedily, one, and at the end of a character."""
    progress = AnswerSoFar(Timings(prompt_n=3, predicted_n=2), text)
    assert tokens_to_repeat(ChatRequest("Hello", options), held, progress) == repeat


def test_the_keeper_hands_out_what_the_slot_has_of_an_answer() -> None:
    """Without what was generated after the client looked, and without the last token if need be."""
    generated = Generated(prompt_tokens=2, tokens=2)
    assert generated.so_far((1, 2, 3, 4, 5)) == [1, 2, 3, 4]
    assert generated.so_far((1, 2, 3)) == [1, 2, 3]
    assert generated.so_far((1, 2)) is None
