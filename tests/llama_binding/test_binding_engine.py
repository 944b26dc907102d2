"""The real llama-cpp-python in the worker, beside a real llama-server where the two compare."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from backends.base import Engine
from backends.footprint.inspect import Inspector
from backends.gguf import read_header
from backends.machine.unix_http import control_request
from backends.openai import AsyncTransport, ChatRequest
from budget.errors import EngineDied, InvalidRequest, LoadFailed, PromptTooLong
from budget.footprint import HOST, EngineArgs
from tests.engines.support import HELLO, binding, llama, placement, running, until

PLACED = placement(binding=True)
Question = Callable[[Engine, AsyncTransport], Coroutine[Any, Any, Any]]

pytestmark = pytest.mark.real


def ask(engine: Engine, question: Question, placed: Any = PLACED) -> Any:
    """What a question to a running engine brings."""

    async def scenario() -> Any:
        async with running(engine, placed):
            client = AsyncTransport()
            try:
                return await question(engine, client)
            finally:
                await client.aclose()

    return asyncio.run(scenario())


async def slots(engine: Engine) -> list[dict[str, Any]]:
    """The rows of its `/slots`."""
    socket = Path(engine.endpoint.socket_path or "")
    rows: list[dict[str, Any]] = (await control_request(socket, "GET", "/slots"))[1]
    return rows


def test_it_says_what_llama_server_says(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """The same template, tokens and text at temperature 0, and as many tokens reused at the second time."""

    async def question(engine: Engine, client: AsyncTransport) -> Any:
        talk: list[dict[str, Any]] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Say hello."}]},
        ]
        first = await client.chat(engine.endpoint, ChatRequest(talk, HELLO.options))
        again = await client.chat(engine.endpoint, ChatRequest(talk, HELLO.options))
        assert again.timings is not None
        return first.content, first.usage, again.usage, again.timings.cache_n

    model = tiny_models["producer"]
    served = ask(llama(model, runtime_dir), question, placement())
    assert ask(binding(model, runtime_dir), question) == served


def test_vectors_are_those_of_llama_server(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """Several texts, of which one is longer; of length 1."""

    async def question(engine: Engine, client: AsyncTransport) -> Any:
        return await client.embed(engine.endpoint, ["a text", "another text, a longer one"])

    model, args = tiny_models["embedder"], {"embeddings": True, "n_ubatch": 512}
    served = ask(llama(model, runtime_dir), question, placement(**args))
    found = ask(binding(model, runtime_dir), question, placement(binding=True, **args))
    assert found.usage.prompt_tokens == served.usage.prompt_tokens
    for mine, other in zip(found.vectors, served.vectors, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)


def test_a_text_that_is_too_long_to_embed_is_refused_with_both_numbers(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """As a prompt is."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        with pytest.raises(PromptTooLong) as caught:
            await client.embed(engine.endpoint, ["again " * 2000])
        has, may = caught.value.facts["n_prompt_tokens"], caught.value.facts["n_ctx"]
        assert isinstance(has, int)
        assert has > 128
        assert may == 128
        with pytest.raises(InvalidRequest):
            await client.chat(engine.endpoint, HELLO)

    placed = placement(binding=True, embeddings=True)
    ask(binding(tiny_models["embedder"], runtime_dir), question, placed)


def test_a_grammar_is_kept_to_and_a_wrong_one_is_refused(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The worker goes on after one that llama.cpp cannot read."""

    async def question(engine: Engine, client: AsyncTransport) -> str:
        wrong = ChatRequest("Choose.", {"grammar": "root ::= (", "max_tokens": 9})
        with pytest.raises(InvalidRequest, match="grammar"):
            await client.chat(engine.endpoint, wrong)
        right = ChatRequest("Choose.", {"grammar": 'root ::= "spam" | "ham"'})
        return (await client.chat(engine.endpoint, right)).content

    assert ask(binding(tiny_models["producer"], runtime_dir), question) in {"spam", "ham"}


def test_json_without_a_schema_is_json(tiny_models: dict[str, Path], runtime_dir: Path) -> None:
    """`response_format` may ask for any object."""

    async def question(engine: Engine, client: AsyncTransport) -> str:
        options = {"response_format": {"type": "json_object"}, "max_tokens": 300, "seed": 3}
        return (await client.chat(engine.endpoint, ChatRequest("Any.", options))).content

    found = ask(binding(tiny_models["producer"], runtime_dir), question)
    assert found.startswith("{")


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"logprobs": True}, "logprobs"), ({"extra": {"xtc_probability": 0.5}}, "xtc_probability")],
)
def test_an_option_that_it_does_not_have_is_refused_by_name(
    tiny_models: dict[str, Path], runtime_dir: Path, asked: dict[str, Any], words: str
) -> None:
    """llama-server has them; leaving them out silently would be another answer."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        with pytest.raises(InvalidRequest, match=words):
            await client.chat(engine.endpoint, ChatRequest("Hi.", {**asked, "max_tokens": 1}))

    ask(binding(tiny_models["producer"], runtime_dir), question)


def test_what_is_measured_before_a_load_is_what_it_allocates(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The dry measurement and the worker give llama.cpp the same parameters."""
    model = tiny_models["producer"]
    args = EngineArgs(n_ctx=1024, n_batch=512, n_ubatch=128, binding=True)
    placed = Inspector().on_host(read_header(model), args)
    part = placed.footprints[HOST]
    told = part.weights_bytes + part.kv_bytes + part.compute_bytes

    async def scenario() -> tuple[int, int]:
        engine = binding(model, runtime_dir)
        try:
            report = await engine.start(placed, lambda _: None)
            return report.buffers[HOST], engine.memory()[HOST] or 0
        finally:
            await engine.stop(grace_s=1.0)

    allocated, taken = asyncio.run(scenario())
    # The log has two decimals of a MiB for each buffer.
    assert abs(allocated - told) < 64 << 10
    assert taken < placed.total_bytes + (8 << 20)


def test_a_file_that_llama_cpp_refuses_is_a_failed_load_with_its_words(
    tiny_models: dict[str, Path], runtime_dir: Path, tmp_path: Path
) -> None:
    """The log is quoted, and nothing of the worker stays."""
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_models["producer"].read_bytes()[: 64 << 10])

    async def scenario() -> None:
        await binding(cut, runtime_dir).start(PLACED, lambda _: None)

    with pytest.raises(LoadFailed, match="llama-cpp-python worker exited with code 1") as caught:
        asyncio.run(scenario())
    assert "refuses the file" in str(caught.value)
    assert list(runtime_dir.iterdir()) == []


def test_an_abort_while_it_loads_ends_the_worker_alone(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """A wrong argument makes ggml abort its process; the caller reads of it, with the last lines."""

    async def scenario() -> None:
        engine = binding(tiny_models["producer"], runtime_dir)
        await engine.start(placement(binding=True, n_batch=0), lambda _: None)

    with pytest.raises(LoadFailed, match=r"ended by signal 6 \(abort\)") as caught:
        asyncio.run(scenario())
    assert "GGML_ASSERT" in str(caught.value.facts["log_tail"])
    assert list(runtime_dir.iterdir()) == []


def test_an_abort_in_mid_request_ends_the_worker_alone(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """A prompt for an encoder breaks an assertion of llama.cpp; the request fails, and the log says why."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        with pytest.raises(EngineDied):
            await client.chat(engine.endpoint, ChatRequest("again " * 40))
        death = await engine.wait_death()
        assert death.message.endswith("ended by signal 6 (abort)")
        assert "GGML_ASSERT" in str(death.log_tail)
        assert not await engine.healthy()

    ask(binding(tiny_models["embedder"], runtime_dir), question)


def test_a_caller_that_does_not_read_is_no_stall(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The slot is shown at work, and as one that waits for its caller: the keeper would end the engine."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        options = {"max_tokens": 7000, "extra": {"ignore_eos": True}}
        stream = await client.stream(engine.endpoint, ChatRequest("Go on.", options))
        await anext(stream)

        async def waits() -> bool:
            signs = await engine.signs(ask=True)
            return signs is not None and signs.slots is not None and signs.slots.busy == 0

        assert await until(waits)
        row = (await slots(engine))[0]
        assert (row["is_processing"], row["is_unread"]) == (True, True)
        await stream.aclose()

    ask(
        binding(tiny_models["producer"], runtime_dir), question, placement(n_ctx=8192, binding=True)
    )


def test_its_slot_is_shown_as_llama_servers_are(
    tiny_models: dict[str, Path], runtime_dir: Path
) -> None:
    """The keeper judges its progress by that, also while it answers."""

    async def question(engine: Engine, client: AsyncTransport) -> None:
        options = {"max_tokens": 7000, "extra": {"ignore_eos": True}}
        stream = await client.stream(engine.endpoint, ChatRequest("Go on.", options))
        await anext(stream)
        row = (await slots(engine))[0]
        assert row["is_processing"]
        assert row["next_token"][0]["n_decoded"] > 0
        await stream.aclose()
        socket = Path(engine.endpoint.socket_path or "")
        assert (await control_request(socket, "GET", "/nothing"))[0] == 404
        status, said = await control_request(
            socket, "POST", "/v1/chat/completions", json.loads("[]")
        )
        assert (status, "messages" in str(said)) == (400, True)

    ask(
        binding(tiny_models["producer"], runtime_dir), question, placement(n_ctx=8192, binding=True)
    )
