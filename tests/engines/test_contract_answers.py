"""The contract of every kind of engine: what is asked of it, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from backends.flows import Stream
from backends.openai import ChatRequest, Completion, SyncTransport, assemble
from budget.errors import InvalidRequest, PromptTooLong
from tests.engines.contract import KINDS, Running, Talk
from tests.engines.support import HELLO, until

LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
BOOK = {"name": "book", "strict": True, "parameters": LABEL}
WITHIN_S = 0.2
"""A stream that is closed ends its generation in this time."""
TRIES = 5
"""On a machine that does other work as well, one of so many streams shows it."""
thinking = pytest.mark.parametrize("running", [k for k in KINDS if k != "scripted"], indirect=True)
"""The kinds of engine in which a model decides what is said."""


async def chat(
    running: Running, options: Mapping[str, Any], text: str = "Say hello."
) -> Completion:
    """An answer."""
    return await running.client.chat(running.endpoint, ChatRequest(text, options))


async def refused(running: Running, options: Mapping[str, Any] = HELLO.options) -> bool:
    """Whether a kind that takes no chats, as it should, says so by the model's name."""
    if running.case.chats:
        return False
    with pytest.raises(InvalidRequest, match=f"{running.endpoint.model_id} does not chat"):
        await chat(running, options)
    return True


async def begun(talk: Talk, stream: Stream[Any]) -> None:
    """Read a stream to its first token."""
    while not talk.text(await anext(stream)):
        pass


async def idle(running: Running) -> bool:
    """Whether an engine works on no request."""
    return await running.case.busy(running.engine) == 0


def test_full_and_streamed_answers_are_the_same_text(running: Running) -> None:
    """Streaming is another way to receive, not another answer (temperature 0, same seed)."""

    async def question() -> None:
        talk = running.talk
        stream = await talk.stream(running.endpoint, 8)
        pieces = [talk.text(piece) async for piece in stream]
        assert "".join(pieces) == await talk.whole(running.endpoint, 8) != ""
        assert sum(1 for piece in pieces if piece) > 1

    running.run(question())


def test_usage_and_timings_are_the_same_in_a_stream(running: Running) -> None:
    """A kind that has no timings has none in either."""

    async def question() -> None:
        if await refused(running):
            return
        full = await running.client.chat(running.endpoint, HELLO)
        pieces = [x async for x in await running.client.stream(running.endpoint, HELLO)]
        streamed = assemble(pieces)
        assert full.finish_reason == streamed.finish_reason == "length"
        assert full.usage.completion_tokens == streamed.usage.completion_tokens == 8
        assert full.usage.prompt_tokens == streamed.usage.prompt_tokens > 0
        has = running.case.can("timings")
        assert (full.timings is not None) is (streamed.timings is not None) is has
        if full.timings is not None and streamed.timings is not None:
            assert streamed.timings.predicted_n == full.timings.predicted_n

    running.run(question())


def test_threads_and_event_loops_get_the_same_answer(running: Running) -> None:
    """The blocking client and the asynchronous one are two ways to one engine."""

    async def question() -> None:
        if await refused(running):
            return
        threads, endpoint = SyncTransport(), running.endpoint
        awaited = await running.client.chat(endpoint, HELLO)
        blocking = await asyncio.to_thread(threads.chat, endpoint, HELLO)
        streamed = await asyncio.to_thread(lambda: assemble(threads.stream(endpoint, HELLO)))
        threads.close()
        assert awaited.content == blocking.content == streamed.content

    running.run(question())


def test_max_tokens_ends_an_answer_with_finish_reason_length(running: Running) -> None:
    """A caller can tell an answer that was cut from one that ended."""

    async def question() -> None:
        if await refused(running):
            return
        answer = await chat(running, {"max_tokens": 2})
        assert answer.finish_reason == "length"
        assert answer.usage.completion_tokens == 2

    running.run(question())


def test_a_closed_stream_ends_its_generation(running: Running) -> None:
    """Within 200 ms: a caller that has read enough leaves an engine that is free for the next request."""

    async def question() -> None:
        for _ in range(TRIES):
            stream = await running.talk.stream(running.endpoint, running.case.long)
            await begun(running.talk, stream)
            assert await running.case.busy(running.engine) == 1
            await stream.aclose()
            if await until(lambda: idle(running), within_s=WITHIN_S):
                return
            assert await until(lambda: idle(running), within_s=10.0)
        pytest.fail(f"none of {TRIES} ended within {WITHIN_S} s")

    running.run(question())


def test_a_request_beyond_the_slots_waits_for_one(running: Running) -> None:
    """As many requests run as it has slots; the next one gets its first token once one of them ends."""

    async def question() -> None:
        talk, case = running.talk, running.case

        async def one() -> Stream[Any]:
            stream = await talk.stream(running.endpoint, case.long)
            await begun(talk, stream)
            return stream

        streams = [await one() for _ in range(case.slots or 3)]
        assert await case.busy(running.engine) == len(streams)
        waiting = asyncio.ensure_future(one())
        if case.slots is not None:
            done, _ = await asyncio.wait({waiting}, timeout=0.05)
            assert not done
            await streams.pop().aclose()
        streams.append(await asyncio.wait_for(waiting, 60.0))
        for stream in streams:
            await stream.aclose()
        assert await until(lambda: idle(running), within_s=10.0)

    running.run(question())


def test_requests_at_the_same_time_are_all_answered(running: Running) -> None:
    """Those beyond the slots wait in the engine, and each gets an answer of its own length."""

    async def question() -> None:
        asked = [running.talk.whole(running.endpoint, n) for n in range(1, 7)]
        answers = await asyncio.gather(*asked)
        assert [len(text) for text in answers] == sorted({len(text) for text in answers})
        assert all(answers)

    running.run(question())


def test_usage_counts_the_prompt(running: Running) -> None:
    """A longer prompt has more tokens."""

    async def question() -> None:
        if await refused(running):
            return
        short = await chat(running, HELLO.options)
        longer = await chat(running, HELLO.options, "Say hello. " * 9)
        assert 0 < short.usage.prompt_tokens < longer.usage.prompt_tokens

    running.run(question())


@thinking
def test_a_seed_repeats_an_answer(running: Running) -> None:
    """The same seed at a temperature above 0 is the same answer; another seed is another answer."""

    async def question() -> None:
        if await refused(running, {"seed": 1}):
            return
        everything = -1 if running.endpoint.backend == "vllm" else 0

        async def drawn(seed: int) -> str:
            options = {"max_tokens": 12, "temperature": 1.5, "seed": seed, "top_k": everything}
            return (await chat(running, options, "Dream.")).content

        assert await drawn(7) == await drawn(7)
        assert await drawn(7) != await drawn(8)

    running.run(question())


@thinking
def test_an_answer_ends_before_a_text_of_stop(running: Running) -> None:
    """The text is not in the answer, and the answer says that it ended."""

    async def question() -> None:
        if await refused(running, {"stop": ["x"]}):
            return
        whole = (await chat(running, HELLO.options)).content
        stop = whole[len(whole) // 2 :]
        cut = await chat(running, {**HELLO.options, "stop": [stop]})
        assert cut.finish_reason == "stop"
        assert cut.content == whole[: whole.index(stop)]

    running.run(question())


@thinking
def test_an_answer_keeps_to_a_json_schema(running: Running) -> None:
    """A model of noise cannot get it right by itself."""

    async def question() -> None:
        options = {"json_schema": LABEL, "max_tokens": 100, "temperature": 0.0}
        if await refused(running, options):
            return
        answer = await chat(running, options, "Is it spam?")
        assert json.loads(answer.content)["label"] in {"spam", "ham"}

    running.run(question())


@thinking
def test_an_answer_keeps_to_a_grammar(running: Running) -> None:
    """A kind of engine that would ignore it refuses it by name."""

    async def question() -> None:
        options = {"grammar": 'root ::= "yes" | "no"', "max_tokens": 9, "temperature": 0.0}
        if await refused(running, options):
            return
        if running.case.can("grammar"):
            assert (await chat(running, options, "Is it spam?")).content in {"yes", "no"}
            return
        with pytest.raises(InvalidRequest, match="grammar"):
            await chat(running, options)

    running.run(question())


@thinking
def test_tools_are_told_to_the_model(running: Running) -> None:
    """A prompt with tools is longer than the same prompt without them, in a stream as well.

    A kind of engine that has no tools says so by name.
    """

    async def question() -> None:
        tools = {**HELLO.options, "tools": [{"type": "function", "function": BOOK}]}
        if await refused(running, tools):
            return
        if not running.case.can("tools"):
            with pytest.raises(InvalidRequest, match="tools"):
                await chat(running, tools)
            return
        without = await chat(running, HELLO.options)
        request = ChatRequest(HELLO.messages, tools)
        told = await running.client.chat(running.endpoint, request)
        pieces = [x async for x in await running.client.stream(running.endpoint, request)]
        streamed = assemble(pieces)
        assert told.usage.prompt_tokens > without.usage.prompt_tokens
        assert streamed.usage.prompt_tokens == told.usage.prompt_tokens

    running.run(question())


@pytest.mark.vllm
@pytest.mark.parametrize("running", ["vllm"], indirect=True)
def test_a_tool_that_is_asked_for_is_called(running: Running) -> None:
    """With arguments of its schema, in a full answer and in a stream.

    llama.cpp lets a model say something before its call, and a model of noise never comes to its end.
    """

    async def question() -> None:
        choice = {"type": "function", "function": {"name": "book"}}
        options = {"tools": [{"type": "function", "function": BOOK}], "tool_choice": choice}
        request = ChatRequest("Book it.", {**options, "max_tokens": 100, "temperature": 0.0})
        full = await running.client.chat(running.endpoint, request)
        pieces = [x async for x in await running.client.stream(running.endpoint, request)]
        for answer in (full, assemble(pieces)):
            (call,) = answer.tool_calls
            assert call["function"]["name"] == "book"
            assert json.loads(call["function"]["arguments"])["label"] in {"spam", "ham"}

    running.run(question())


@thinking
def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(running: Running) -> None:
    """A caller learns how long it is and how long it may be, whatever words the engine has for it.

    Ollama cuts a chat without a word; there it is the text of an embedder that is refused.
    """

    async def question() -> None:
        if await refused(running):
            return
        long = "again " * 9000
        if not running.case.can("too_long"):
            with pytest.raises(PromptTooLong):
                await running.client.embed(running.endpoint, [long])
            return
        with pytest.raises(PromptTooLong) as caught:
            await chat(running, {"max_tokens": 2}, long)
        has, may = caught.value.facts["n_prompt_tokens"], caught.value.facts["n_ctx"]
        assert isinstance(has, int)
        assert isinstance(may, int)
        assert has > may > 0

    running.run(question())


def test_saved_kv_state_is_offered_exactly_as_declared(running: Running) -> None:
    """A capability is true or the call is refused with a typed error; nothing is silent."""

    async def question() -> None:
        await running.talk.whole(running.endpoint, 4)
        saves = running.case.can("kv")
        assert running.engine.capabilities.save_restore is saves
        if saves:
            assert await running.engine.save_kv(0, "talk") > 0
            assert await running.engine.restore_kv(0, "talk") > 0
        else:
            with pytest.raises(InvalidRequest, match=running.endpoint.model_id):
                await running.engine.save_kv(0, "talk")

    running.run(question())


def test_vectors_of_a_model_that_chats_are_refused_by_name(running: Running) -> None:
    """One typed error that names the model, never half an answer."""

    async def question() -> None:
        if running.engine.capabilities.embeddings:
            assert running.case.name in {"ollama", "scripted"}
            return
        with pytest.raises(InvalidRequest, match=running.endpoint.model_id):
            await running.client.embed(running.endpoint, ["a text"])

    running.run(question())


def test_texts_become_vectors_in_their_order(embedding: Running) -> None:
    """One for each text; equal texts have equal vectors, and a chat is refused by name."""

    async def question() -> None:
        texts = ["one text", "another", "one text"]
        found = await embedding.client.embed(embedding.endpoint, texts)
        assert len(found.vectors) == 3
        assert found.vectors[0] == pytest.approx(found.vectors[2], abs=1e-4)
        assert found.vectors[0] != pytest.approx(found.vectors[1], abs=1e-4)
        assert found.usage.prompt_tokens > 0
        if not embedding.engine.capabilities.chat:
            with pytest.raises(InvalidRequest, match=embedding.endpoint.model_id):
                await chat(embedding, HELLO.options)

    embedding.run(question())
