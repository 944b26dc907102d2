"""An answer that llama-server generated and could not take apart is not lost."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from backends.openai import ChatRequest, SyncTransport
from budget.errors import EndpointError
from shim import ChatOptions, Shim
from tests.engines.hostile import EVENT_STREAM, ask, head, listening, read_whole, token
from tests.engines.templates import CHANNELS

_SAID = b'{"error": {"code": 500, "message": "output that does not match the expected peg-native format"}}'
_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("is_async", [False, True])
def test_an_answer_that_the_engine_could_not_take_apart_is_asked_for_once_more(
    *, is_async: bool
) -> None:
    """The second one is whole, and the caller sees nothing of the first."""

    def serve(connection: socket.socket) -> None:
        _, body = read_whole(connection)
        good = EVENT_STREAM + token("hi") + _END
        connection.sendall(good if b'"stream":true' in body else head(500) + _SAID)

    with listening(serve) as endpoint:
        answer = ask("chat", endpoint, is_async=is_async)
    assert (answer.content, answer.finish_reason) == ("hi", "stop")


def test_an_error_of_another_kind_is_not_asked_about_again() -> None:
    """Status 500 alone says nothing of an answer."""
    seen = []

    def serve(connection: socket.socket) -> None:
        seen.append(read_whole(connection))
        connection.sendall(head(500) + b'{"error": {"message": "it broke"}}')

    with listening(serve) as endpoint, pytest.raises(EndpointError, match="it broke"):
        SyncTransport().chat(endpoint, ChatRequest("x"))
    assert len(seen) == 1


@pytest.mark.real
def test_an_answer_to_texts_alone_is_given_as_it_was_generated(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """A model whose template asks for channels answers without: the text is the reply, and a warning."""
    template = tmp_path / "channels.jinja"
    template.write_text(CHANNELS)
    model = {"path": str(tiny_models["producer"]), "context": 512}
    config = {
        "budget": {"device": "host", "limit": "600MiB"},
        "models": {"m": {**model, "engine_args": ["--chat-template-file", str(template)]}},
    }
    options: ChatOptions = {"max_tokens": 12, "seed": 1, "temperature": 0}
    with Shim(config) as shim:
        reply = shim.chat("m", "x", **options)
        assert asyncio.run(shim.achat("m", "x", **options)).content == reply.content
        with pytest.raises(EndpointError, match=r"does not match.*Nothing of it was sent"):
            list(shim.stream("m", "x", **options))
    assert reply.content
    assert "as it was generated" in reply.warnings[-1]
    assert reply.finish_reason == "length"
    assert reply.usage.completion_tokens == 12
    assert reply.usage.prompt_tokens > 0
    assert reply.retried == 0


@pytest.mark.real
def test_the_text_that_could_not_be_taken_apart_is_handed_over(
    tiny_models: dict[str, Path],
) -> None:
    r"""llama-server reads `\"` in a pattern as a bare quote, and then not its own answer."""
    config = {
        "budget": {"device": "host", "limit": "600MiB"},
        "models": {"m": {"path": str(tiny_models["producer"]), "context": 512}},
    }
    schema = {"type": "string", "pattern": r"^\"$"}
    options: ChatOptions = {"json_schema": schema, "max_tokens": 24, "seed": 1, "temperature": 0}
    with Shim(config) as shim:
        with pytest.raises(EndpointError, match="does not match") as whole:
            shim.chat("m", "x", **options)
        with pytest.raises(EndpointError) as streamed:
            list(shim.stream("m", "x", **options))
    assert str(whole.value.facts["text"]).startswith('"')
    assert str(streamed.value.facts["text"]).startswith('"')
