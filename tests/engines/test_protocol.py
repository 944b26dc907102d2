"""The protocol without I/O: options, answers, streams, and what foreign errors become."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Capabilities, Endpoint
from backends.openai import ChatRequest, Delta, assemble
from backends.openai.answers.foreign_errors import Heard, error_from_answer, error_in_answer
from backends.openai.answers.reading import StreamReader
from backends.openai.answers.sse import SseParser
from backends.openai.masking import NO_SECRETS, Secrets
from backends.openai.protocol import chat_body, parse_chunk, parse_completion, parse_embeddings
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    InvalidRequest,
    KeepwarmError,
    PromptTooLong,
    QueueFull,
    UnknownModel,
)

VLLM = Endpoint("http://user:hidden@far:8000/base", "m", "vllm", api_key_env="FAR_KEY")
LLAMA = Endpoint(
    "http://engine",
    "m",
    "llama.cpp",
    socket_path="/x.sock",
    capabilities=Capabilities(grammar=True),
    slots=2,
)


def _vllm(code: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


ANSWERS = [
    (VLLM, 404, _vllm(404, "The model `x` does not exist.", "NotFoundError", "model"), UnknownModel),
    (
        VLLM,
        400,
        _vllm(400, "maximum context length is 512", "BadRequestError", "input_tokens"),
        PromptTooLong,
    ),
    (
        VLLM,
        400,
        _vllm(400, "max_tokens is too large: maximum context length", "BadRequestError", "max_tokens"),
        InvalidRequest,
    ),
    (VLLM, 400, _vllm(400, "Expecting value", "Bad Request"), InvalidRequest),
    (VLLM, 503, _vllm(503, "queue is full", "ServiceUnavailable"), QueueFull),
    (VLLM, 500, _vllm(500, "EngineCore encountered an issue", "InternalServerError"), EngineDied),
    (VLLM, 500, _vllm(500, "something odd", "InternalServerError"), EndpointError),
    (VLLM, 404, {"detail": "Not Found"}, EndpointError),
    (VLLM, 405, {"detail": "Method Not Allowed"}, EndpointError),
    (VLLM, 401, {"error": "Unauthorized"}, EndpointError),
    (VLLM, 429, {"error": {"message": "slow down"}}, QueueFull),
    (VLLM, 502, None, EndpointUnavailable),
    (VLLM, 302, None, EndpointError),
    (
        LLAMA,
        400,
        {
            "error": {
                "code": 400,
                "message": "request (900 tokens) exceeds the available context size (512 tokens)",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 900,
                "n_ctx": 512,
            }
        },
        PromptTooLong,
    ),
    (LLAMA, 500, _vllm(500, "input (900 tokens) is too large to process", "server_error"), PromptTooLong),
    (LLAMA, 503, _vllm(503, "Loading model", "unavailable_error"), EndpointUnavailable),
    (LLAMA, 501, _vllm(501, "no audio", "not_supported_error"), InvalidRequest),
    (LLAMA, 500, "plain text", EndpointError),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "status", "answer", "kind"), ANSWERS)
def test_every_foreign_error_shape_becomes_one_of_ours(
    endpoint: Endpoint, status: int, answer: object, kind: type[KeepwarmError]
) -> None:
    """Exactly the type, with the status as a fact and the server's words in the message."""
    body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
    error = error_from_answer(endpoint, status, body)
    assert type(error) is kind
    assert error.facts["status"] == status
    assert str(status) in str(error)
    assert all(words in str(error) for words in _words_of(answer))
    assert "hidden" not in str(error)


def _words_of(answer: object) -> list[str]:
    """What an endpoint says in words, wherever it does."""
    if isinstance(answer, dict):
        told = [answer[key] for key in ("message", "detail", "error") if key in answer]
        return [words for value in told for words in _words_of(value)]
    return [answer] if isinstance(answer, str) else []


def test_a_context_overflow_carries_its_numbers() -> None:
    """llama.cpp's counts become facts."""
    body = json.dumps(ANSWERS[13][2]).encode()
    assert error_from_answer(LLAMA, 400, body).facts["n_prompt_tokens"] == 900


_TOO_MANY_CHARACTERS = (
    "This model's maximum context length is 512 tokens. However, your prompt contains 6145 characters"
    " (more than 3072 characters, which is the upper bound for 512 input tokens)."
)


@pytest.mark.parametrize(
    ("message", "has", "may"),
    [
        (
            "maximum context length is 512 tokens. However, your prompt contains at least 513 input tokens",
            513,
            512,
        ),
        (
            _TOO_MANY_CHARACTERS,
            1025,
            512,
        ),
        (
            "maximum context length is 4097 tokens. However, your messages resulted in 5001 tokens.",
            5001,
            4097,
        ),
        (
            "maximum context length is 512 tokens. However, you requested 900 tokens (600 in the messages)",
            600,
            512,
        ),
    ],
)
def test_a_context_overflow_in_words_carries_its_numbers(message: str, has: int, may: int) -> None:
    """vLLM, now and before, and OpenAI have no fields for them."""
    error = error_from_answer(
        VLLM, 400, json.dumps(_vllm(400, message, "BadRequestError")).encode()
    )
    assert isinstance(error, PromptTooLong)
    assert (error.facts["n_prompt_tokens"], error.facts["n_ctx"]) == (has, may)


@pytest.mark.parametrize(
    ("endpoint", "message", "helps"),
    [
        (LLAMA, "input (900 tokens) is too large to process", "n_ubatch and n_batch"),
        (LLAMA, "request exceeds the available context size", "context / slots"),
        (VLLM, "maximum context length is 512", "where the endpoint is run"),
    ],
)
def test_the_hint_of_a_long_prompt_names_the_bound_that_it_met(
    endpoint: Endpoint, message: str, helps: str
) -> None:
    """A physical batch that is too small is not mended by a larger context, nor a remote one from here."""
    body = json.dumps(_vllm(400, message, "error")).encode()
    error = error_from_answer(endpoint, 400, body)
    assert isinstance(error, PromptTooLong)
    assert helps in error.hint


def test_a_vllm_server_without_a_route_for_vectors_does_not_embed() -> None:
    """It registers routes by what its model does; a server of another kind may only have another path."""
    body, heard = b'{"detail":"Not Found"}', Heard(asked="http://x/v1/embeddings")
    error = error_from_answer(VLLM, 404, body, heard=heard)
    assert isinstance(error, InvalidRequest)
    assert "does not embed" in str(error)
    other = replace(VLLM, backend="openai")
    assert type(error_from_answer(other, 404, body, heard=heard)) is EndpointError
    chat = Heard(asked="http://x/v1/chat/completions")
    assert type(error_from_answer(VLLM, 404, body, heard=chat)) is EndpointError


def test_an_error_inside_a_stream_with_status_200_is_raised() -> None:
    """An engine of vLLM dies after the headers are sent: the chunk's own code counts."""
    reader = StreamReader(VLLM, NO_SECRETS)
    chunk = _vllm(500, "EngineCore has died", "InternalServerError")
    with pytest.raises(EngineDied):
        reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\ndata: [DONE]\n\n")
    assert type(error_in_answer(VLLM, {"error": "odd"})) is EndpointError


def test_a_stream_without_done_is_broken_by_where_it_came_from() -> None:
    """A clean end of the body is no end of the answer."""
    chunk = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    for endpoint, kind in ((LLAMA, EngineDied), (VLLM, EndpointUnavailable)):
        reader = StreamReader(endpoint, NO_SECRETS)
        assert reader.feed(chunk) == [Delta(content="a")]
        with pytest.raises(kind, match="DONE"):
            reader.ended()


def test_a_key_that_a_server_repeats_is_masked() -> None:
    """Some servers quote the key that they refuse."""
    answer = {"error": {"message": "Incorrect API key: sk-123456", "type": "auth"}}
    error = error_from_answer(VLLM, 401, json.dumps(answer).encode(), Secrets("sk-123456"))
    assert "sk-123456" not in str(error)
    assert "sk-123456" not in json.dumps(error.to_wire())
    assert "FAR_KEY" in str(error)


def test_options_become_the_fields_of_the_protocol() -> None:
    """Convenience names are translated, None is left out, extra is passed as it is."""
    options = {
        "max_tokens": 5,
        "seed": None,
        "stop": "end",
        "json_schema": {"type": "object"},
        "slot": 1,
        "extra": {"mirostat": 2},
    }
    body = json.loads(chat_body(LLAMA, ChatRequest("hi", options), stream=True))
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "stop": ["end"],
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
        },
        "id_slot": 1,
        "mirostat": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_slot_that_the_engine_does_not_have_is_refused() -> None:
    """llama-server would serve the request in any other slot, so a caller's own slots would mix."""
    own = Endpoint.of_engine("m", Path("/engine"), Capabilities(), slots=2)
    for options in ({"slot": 2}, {"extra": {"id_slot": 7}}):
        with pytest.raises(InvalidRequest, match="it has 0 to 1") as caught:
            chat_body(own, ChatRequest("hi", options), stream=False)
        assert caught.value.facts["option"] == "slot"
    with pytest.raises(InvalidRequest, match="its one slot is 0"):
        chat_body(replace(own, slots=1), ChatRequest("hi", {"slot": 1}), stream=False)
    assert json.loads(chat_body(own, ChatRequest("hi", {"slot": 1}), stream=False))["id_slot"] == 1
    anywhere = {"extra": {"id_slot": -1}}
    assert json.loads(chat_body(own, ChatRequest("hi", anywhere), stream=False))["id_slot"] == -1


@pytest.mark.parametrize(
    ("endpoint", "messages", "options"),
    [
        (LLAMA, [], {}),
        (LLAMA, [{"role": "robot", "content": "x"}], {}),
        (LLAMA, [{"role": "user"}], {}),
        (LLAMA, ["hello"], {}),
        (LLAMA, "x", {"temperature": float("nan")}),
        (LLAMA, "x", {"temperature": -1}),
        (LLAMA, "x", {"max_tokens": True}),
        (LLAMA, "x", {"max_tokens": 0}),
        (LLAMA, "x", {"stop": [""]}),
        (LLAMA, "x", {"response_format": {"type": "yaml"}}),
        (LLAMA, "x", {"extra": {"model": "other"}}),
        (LLAMA, "x", {"extra": {"bad": object()}}),
        (LLAMA, "x", {"temprature": 1.0}),
        (VLLM, "x", {"grammar": 'root ::= "a"'}),
        (VLLM, "x", {"slot": 0}),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    endpoint: Endpoint, messages: Any, options: dict[str, Any]
) -> None:
    """Bad messages and options are the caller's error, before anything is sent."""
    with pytest.raises(InvalidRequest):
        chat_body(endpoint, ChatRequest(messages, options), stream=False)


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    """Names come once, arguments in fragments, several calls by index."""
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}
    pieces = [
        Delta(role="assistant", tool_calls=(first,)),
        Delta(tool_calls=({"index": 0, "function": {"arguments": '{"x"'}},)),
        Delta(tool_calls=({"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}},)),
        Delta(tool_calls=({"index": 0, "function": {"arguments": ":1}"}},)),
        Delta(finish_reason="tool_calls"),
    ]
    answer = assemble(pieces)
    assert [call["function"] for call in answer.tool_calls] == [
        {"name": "f", "arguments": '{"x":1}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert answer.tool_calls[0]["id"] == "a"
    assert answer.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "answer", [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": 1}]}]
)
def test_an_answer_of_another_shape_is_an_endpoint_error(answer: dict[str, Any]) -> None:
    """A proxy's or another protocol's 200 is not taken for an empty answer."""
    with pytest.raises(EndpointError, match="shape"):
        parse_completion(answer)


def test_embeddings_are_ordered_by_index_and_counted() -> None:
    """Rows may come in any order, but there is one per text."""
    answer = {"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]}
    assert parse_embeddings(answer, 2).vectors == ((1.0,), (2.0,))
    with pytest.raises(EndpointError, match="2 vectors for 3"):
        parse_embeddings(answer, 3)


_EVENTS = st.lists(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc"))), max_size=6)


@given(texts=_EVENTS, cuts=st.lists(st.integers(1, 9), min_size=1, max_size=60), crlf=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=200)
def test_a_stream_parses_alike_however_it_is_cut(
    texts: list[str], cuts: list[int], crlf: bool
) -> None:
    """Chunk borders fall anywhere, also inside characters and line ends; comments vanish."""
    end = "\r\n" if crlf else "\n"
    events = [
        json.dumps({"choices": [{"delta": {"content": text}}]}, ensure_ascii=False)
        for text in texts
    ]
    raw = "".join(f": ping{end}{end}data: {event}{end}{end}" for event in events).encode()
    parser, found, start = SseParser(), [], 0
    for cut in [*cuts, len(raw)]:
        found += parser.feed(raw[start : start + cut])
        start += cut
    assert [parse_chunk(json.loads(event)).content for event in found] == texts
    assert parser.finish() == []
