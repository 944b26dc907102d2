"""The contract of every kind of engine: what is asked of it, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from backends.base import Engine
from backends.openai import AsyncTransport, ChatRequest, Completion, assemble
from budget.errors import (
    EndpointUnavailable,
    EngineDied,
    InvalidRequest,
    PromptTooLong,
)
from tests.engines.conftest import Case
from tests.engines.support import HELLO, running, until

LABEL = {
    "type": "object",
    "properties": {"label": {"enum": ["spam", "ham"]}},
    "required": ["label"],
    "additionalProperties": False,
}
BOOK = {"name": "book", "strict": True, "parameters": LABEL}
Question = Callable[[Engine, AsyncTransport], Coroutine[Any, Any, None]]


def ask(case: Case, folder: Path, question: Question) -> None:
    """Put a question to a fresh engine of a kind."""

    async def scenario() -> None:
        async with running(case.make(folder), case.placed) as engine:
            client = AsyncTransport()
            try:
                await question(engine, client)
            finally:
                await client.aclose()

    asyncio.run(scenario())


def test_a_closed_stream_ends_its_generation(case: Case, runtime_dir: Path) -> None:
    """A caller that has read enough leaves an engine that is free for the next request."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        options = {"max_tokens": case.long, "extra": {"ignore_eos": True}}
        stream = await client.stream(engine.endpoint, ChatRequest("Go on.", options))
        await anext(stream)
        assert case.busy(engine) == 1
        await stream.aclose()
        assert await until(lambda: idle(case, engine), within_s=2.0)

    ask(case, runtime_dir, question)


async def idle(case: Case, engine: Engine) -> bool:
    """Whether an engine works on no request."""
    return case.busy(engine) == 0


def test_requests_at_the_same_time_are_all_answered(case: Case, runtime_dir: Path) -> None:
    """Those beyond the slots wait in the engine, and each gets an answer of its own length."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        asked = [
            ChatRequest(f"Say {n}.", {"max_tokens": n, "temperature": 0.0}) for n in range(1, 7)
        ]
        answers = await asyncio.gather(*(client.chat(engine.endpoint, one) for one in asked))
        assert [answer.usage.completion_tokens for answer in answers] == [1, 2, 3, 4, 5, 6]
        assert all(answer.content for answer in answers)

    ask(case, runtime_dir, question)


def test_usage_counts_the_prompt_and_the_answer(case: Case, runtime_dir: Path) -> None:
    """A longer prompt has more tokens, and the counts of a stream are those of a whole answer."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        short = await client.chat(engine.endpoint, HELLO)
        longer = await client.chat(engine.endpoint, ChatRequest("Say hello. " * 9, HELLO.options))
        assert 0 < short.usage.prompt_tokens < longer.usage.prompt_tokens
        assert short.usage.completion_tokens == longer.usage.completion_tokens == 8

    ask(case, runtime_dir, question)


def test_a_seed_repeats_an_answer(thinking: Case, runtime_dir: Path) -> None:
    """The same seed at a temperature above 0 is the same answer; another seed is another answer."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        async def drawn(seed: int) -> str:
            options = {"max_tokens": 12, "temperature": 1.5, "seed": seed, "top_k": 0}
            if engine.endpoint.backend == "vllm":
                options["top_k"] = -1
            return (await client.chat(engine.endpoint, ChatRequest("Dream.", options))).content

        assert await drawn(7) == await drawn(7)
        assert await drawn(7) != await drawn(8)

    ask(thinking, runtime_dir, question)


def test_an_answer_ends_before_a_text_of_stop(thinking: Case, runtime_dir: Path) -> None:
    """The text is not in the answer, and the answer says that it ended."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        whole = (await client.chat(engine.endpoint, HELLO)).content
        stop = whole[len(whole) // 2 :]
        options = {**HELLO.options, "stop": [stop]}
        cut = await client.chat(engine.endpoint, ChatRequest(HELLO.messages, options))
        assert cut.finish_reason == "stop"
        assert cut.content == whole[: whole.index(stop)]

    ask(thinking, runtime_dir, question)


def test_an_answer_keeps_to_a_json_schema(thinking: Case, runtime_dir: Path) -> None:
    """A model of noise cannot get it right by itself."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        options = {"json_schema": LABEL, "max_tokens": 100, "temperature": 0.0}
        answer = await client.chat(engine.endpoint, ChatRequest("Is it spam?", options))
        assert json.loads(answer.content)["label"] in {"spam", "ham"}

    ask(thinking, runtime_dir, question)


def test_tools_are_told_to_the_model(thinking: Case, runtime_dir: Path) -> None:
    """A prompt with tools is longer than the same prompt without them, in a stream as well.

    A kind of engine that has no tools says so by name.
    """

    async def question(engine: Engine, client: AsyncTransport) -> None:
        tools = {**HELLO.options, "tools": [{"type": "function", "function": BOOK}]}
        if not engine.capabilities.tools:
            with pytest.raises(InvalidRequest, match="tools"):
                await client.chat(engine.endpoint, ChatRequest(HELLO.messages, tools))
            return
        without = await client.chat(engine.endpoint, HELLO)
        request = ChatRequest(HELLO.messages, tools)
        told = await client.chat(engine.endpoint, request)
        streamed = assemble([x async for x in await client.stream(engine.endpoint, request)])
        assert told.usage.prompt_tokens > without.usage.prompt_tokens
        assert streamed.usage.prompt_tokens == told.usage.prompt_tokens

    ask(thinking, runtime_dir, question)


@pytest.mark.parametrize("thinking", [pytest.param("vllm", marks=pytest.mark.vllm)], indirect=True)
def test_a_tool_that_is_asked_for_is_called(thinking: Case, runtime_dir: Path) -> None:
    """With arguments of its schema, in a full answer and in a stream.

    llama.cpp lets a model say something before its call, and a model of noise never comes to its end.
    """

    async def question(engine: Engine, client: AsyncTransport) -> None:
        choice = {"type": "function", "function": {"name": "book"}}
        options = {"tools": [{"type": "function", "function": BOOK}], "tool_choice": choice}
        request = ChatRequest("Book it.", {**options, "max_tokens": 100, "temperature": 0.0})
        full = await client.chat(engine.endpoint, request)
        streamed = assemble([x async for x in await client.stream(engine.endpoint, request)])
        for answer in (full, streamed):
            assert called(answer)["name"] == "book"
            assert json.loads(called(answer)["arguments"])["label"] in {"spam", "ham"}

    ask(thinking, runtime_dir, question)


def called(answer: Completion) -> dict[str, Any]:
    """The function of the only call of an answer."""
    (call,) = answer.tool_calls
    return dict(call["function"])


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(
    thinking: Case, runtime_dir: Path
) -> None:
    """A caller learns how long it is and how long it may be, whatever words the engine has for it."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        with pytest.raises(PromptTooLong) as caught:
            await client.chat(engine.endpoint, ChatRequest("again " * 9000, {"max_tokens": 2}))
        has, may = caught.value.facts["n_prompt_tokens"], caught.value.facts["n_ctx"]
        assert isinstance(has, int)
        assert isinstance(may, int)
        assert has > may > 0

    ask(thinking, runtime_dir, question)


def test_what_an_engine_cannot_do_is_refused_by_name(thinking: Case, runtime_dir: Path) -> None:
    """Vectors of a model that chats: one typed error that names the model, never half an answer."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        with pytest.raises(InvalidRequest, match=engine.endpoint.model_id):
            await client.embed(engine.endpoint, ["a text"])

    ask(thinking, runtime_dir, question)


def test_texts_become_vectors_in_their_order(embedding: Case, runtime_dir: Path) -> None:
    """One for each text; equal texts have equal vectors, and a chat is refused by name."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        found = await client.embed(engine.endpoint, ["one text", "another", "one text"])
        assert len(found.vectors) == 3
        assert found.vectors[0] == pytest.approx(found.vectors[2], abs=1e-4)
        assert found.vectors[0] != pytest.approx(found.vectors[1], abs=1e-4)
        assert found.usage.prompt_tokens > 0
        if not engine.capabilities.chat:
            with pytest.raises(InvalidRequest, match=engine.endpoint.model_id):
                await client.chat(engine.endpoint, HELLO)

    ask(embedding, runtime_dir, question)


def test_a_death_in_mid_stream_is_an_error_with_the_text_so_far(
    case: Case, runtime_dir: Path
) -> None:
    """No answer ends as if it were whole, and what was heard is not lost."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        options = {"max_tokens": case.long, "extra": {"ignore_eos": True}}
        stream = await client.stream(engine.endpoint, ChatRequest("Go on.", options))
        heard = (await anext(stream)).content

        async def rest() -> None:
            nonlocal heard
            async for piece in stream:
                heard += piece.content

        case.crash(engine)
        with pytest.raises((EngineDied, EndpointUnavailable)) as caught:
            await rest()
        assert caught.value.facts["text"] == heard

    try:
        ask(case, runtime_dir, question)
    finally:
        case.bury()
