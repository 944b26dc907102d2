"""Models at Ollama, by its own API: a server with its documented shapes, not Ollama itself."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.base import Endpoint
from backends.openai import RemoteEngine, transport
from shim import (
    EndpointUnavailable,
    EngineTimeout,
    InvalidRequest,
    KeepwarmError,
    Shim,
    UnknownModel,
)
from shim.cli import main
from tests.engines.support import placement
from tests.servers.fake_ollama import BYTES, FakeOllama, fake_ollama

NAME = "llama3.2:3b"
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}}


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    """One that has the model."""
    with fake_ollama(NAME) as server:
        yield server


@pytest.fixture
def shim(ollama: FakeOllama) -> Iterator[Shim]:
    """A Shim with the model under a name of its own, kept for a minute."""
    entry = {"backend": "ollama", "url": ollama.url, "model_id": NAME, "keep_alive": "60s"}
    with Shim({"models": {"talks": entry, "none": {**entry, "model_id": "other"}}}) as made:
        yield made


def asked(ollama: FakeOllama) -> dict[str, Any]:
    """The last request."""
    return ollama.asked[-1][1]


def test_a_chat_goes_to_its_own_api_with_its_own_options(shim: Shim, ollama: FakeOllama) -> None:
    """`keep_alive` goes along; usage and timings come back."""
    reply = shim.chat(
        "talks",
        "Hi",
        max_tokens=9,
        temperature=0.5,
        seed=7,
        stop="x",
        json_schema=SCHEMA,
        extra={"think": False, "options": {"num_ctx": 1024}},
    )
    assert ollama.asked[-1][0] == "/api/chat"
    assert asked(ollama) == {
        "model": NAME,
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": False,
        "format": SCHEMA,
        "options": {
            "num_predict": 9,
            "temperature": 0.5,
            "seed": 7,
            "stop": ["x"],
            "num_ctx": 1024,
        },
        "think": False,
        "keep_alive": 60.0,
    }
    assert (reply.content, reply.finish_reason) == ('{"age": 1}', "stop")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (26, 1)
    assert reply.timings is not None
    assert reply.timings.predicted_ms == pytest.approx(453.599)


def test_a_stream_of_lines_is_a_stream_of_pieces(shim: Shim) -> None:
    """In threads and event loops; the last line has the figures."""
    with shim.stream("talks", "Hi") as stream:
        assert [piece.content for piece in stream if piece.content] == ["Hel", "lo", " you"]
    assert stream.reply.finish_reason == "stop"
    assert stream.reply.usage.completion_tokens == 3

    async def pieces() -> str:
        return "".join([piece.content async for piece in shim.astream("talks", "Hi")])

    assert asyncio.run(pieces()) == "Hello you"


def test_a_stream_that_breaks_off_is_an_error_with_its_text(shim: Shim, ollama: FakeOllama) -> None:
    """Without the line that says `done` it is not whole."""
    ollama.breaks_off = True
    with pytest.raises(EndpointUnavailable) as caught:
        list(shim.stream("talks", "Hi"))
    assert caught.value.facts["text"] == "Hello you"


def test_a_whole_answer_that_is_not_done_is_an_error(shim: Shim, ollama: FakeOllama) -> None:
    """A part of an answer is no answer."""
    ollama.breaks_off = True
    with pytest.raises(KeepwarmError, match="it says that it is not done"):
        shim.chat("talks", "Hi")


def test_tools_images_and_calls_have_its_shapes(shim: Shim, ollama: FakeOllama) -> None:
    """Arguments are objects there and texts here; an image is its base64 text."""
    tool = {"type": "function", "function": {"name": "book", "parameters": SCHEMA}}
    call = {"id": "1", "type": "function", "function": {"name": "book", "arguments": '{"a": 1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    reply = shim.chat(
        "talks",
        [
            {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ],
        tools=[tool],
    )
    first, second, third = asked(ollama)["messages"]
    assert first == {"role": "user", "content": "see", "images": ["QUJD"]}
    assert second["tool_calls"] == [{"function": {"name": "book", "arguments": {"a": 1}}}]
    assert third == {"role": "tool", "content": "done"}
    assert asked(ollama)["tools"] == [tool]
    (said,) = reply.tool_calls
    assert said["function"]["name"] == "book"
    assert json.loads(said["function"]["arguments"]) == {"label": "spam"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
    ],
)
def test_what_it_cannot_honour_is_refused_by_name(
    shim: Shim, ollama: FakeOllama, options: dict[str, Any], words: str
) -> None:
    """Before anything is sent."""
    with pytest.raises(InvalidRequest, match=words):
        shim.chat("talks", "Hi", **options)
    assert ollama.asked == []


def test_vectors_are_whole_or_refused(shim: Shim, ollama: FakeOllama) -> None:
    """It would cut a long text without a word; that is turned off."""
    reply = shim.embed("talks", ["four", "five!"])
    assert reply.vectors == ((4.0, 0.5), (5.0, 0.5))
    assert reply.usage.prompt_tokens == 8
    assert ollama.asked[-1][0] == "/api/embed"
    assert asked(ollama)["truncate"] is False


def test_it_is_loaded_and_released_by_keep_alive(shim: Shim, ollama: FakeOllama) -> None:
    """`load`, `release` and `unload` are requests without messages."""
    shim.load("talks")
    assert ollama.in_memory == {NAME}
    assert asked(ollama)["keep_alive"] == 60.0
    shim.release("talks")
    assert ollama.in_memory == set()
    assert asked(ollama) == {"model": NAME, "messages": [], "stream": False, "keep_alive": 0}
    assert shim.unload("talks")


def test_a_model_that_it_does_not_have_is_unknown_with_what_to_do(shim: Shim) -> None:
    """In its own words."""
    with pytest.raises(UnknownModel, match="try pulling it first") as caught:
        shim.chat("none", "Hi")
    assert "ollama pull other" in caught.value.hint


def test_ps_shows_what_it_has_in_memory(ollama: FakeOllama, tmp_path: Path) -> None:
    """With its bytes, under the name of the configuration; without a keeper, too."""
    file = tmp_path / "keepwarm.toml"
    gone = '[models.gone]\nbackend = "ollama"\nurl = "http://127.0.0.1:9"\n'
    file.write_text(
        f'[models.talks]\nbackend = "ollama"\nurl = "{ollama.url}"\nmodel_id = "{NAME}"\n{gone}'
    )
    ollama.in_memory.add(NAME)
    runner, command = CliRunner(), ["--config", str(file), "ps"]
    done = runner.invoke(main, [*command, "--json"], catch_exceptions=False)
    first, second = json.loads(done.stdout)["ollama"]
    assert (first["model"], first["name"], first["bytes"]) == ("talks", NAME, BYTES)
    assert first["gpu_bytes"] == BYTES
    assert "does not answer" in second["error"]
    shown = runner.invoke(main, command, catch_exceptions=False).stdout
    assert "4.78 GiB" in shown
    assert NAME in shown


def test_its_health_is_its_list_of_models(ollama: FakeOllama) -> None:
    """`/api/tags`: there is no `/health`."""

    async def scenario() -> bool:
        engine = RemoteEngine(Endpoint(ollama.url, NAME, "ollama"), check=True)
        await engine.start(placement(), lambda _fraction: None)
        return await engine.healthy()

    assert asyncio.run(scenario())


def test_letting_a_model_go_at_a_server_that_hangs_ends_in_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It accepts and never answers: the error is typed, and the bound is not that of an answer."""
    monkeypatch.setattr(transport, "UNLOAD_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Shim({"models": {"talks": {"backend": "ollama", "url": url}}}) as shim:
            for let_go in (shim.release, shim.unload):
                with pytest.raises(EngineTimeout, match=r"0\.2 s"):
                    let_go("talks")
