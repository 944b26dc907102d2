"""Endpoints that refuse fields which we add: asked once more without them, and never again with them."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai import ChatRequest, SyncTransport
from backends.openai.connections.bounds import Bounds, Timeouts
from budget.errors import InvalidRequest, PromptTooLong
from tests.engines.hostile import EVENT_STREAM, Serve, head, listening, read_whole, token

_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
_STREAM = EVENT_STREAM + token("hi") + _END
_ROWS = head() + b'{"data": [{"index": 0, "embedding": [0.5]}]}'
_WHOLE = head() + b'{"choices": [{"message": {"content": "hi"}}]}'
_ASK = ChatRequest("x", {"max_tokens": 3})


def _serve(seen: list[dict[str, Any]], judge: Callable[[dict[str, Any]], bytes]) -> Serve:
    """Answers each request by its body, which it notes."""

    def serve(connection: socket.socket) -> None:
        start, body = read_whole(connection)
        if start:
            seen.append(json.loads(body))
            connection.sendall(judge(seen[-1]))

    return serve


def _strict(field: str, said: str, good: bytes, status: int = 400) -> Callable[[Any], bytes]:
    return lambda body: head(status) + said.encode() if field in body else good


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, '{"error": {"message": "Unknown parameter: stream_options", "code": 400}}'),
        (422, '{"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}'),
        (400, "Bad Request"),
    ],
)
def test_a_stream_is_asked_for_without_options_where_they_are_refused(
    status: int, said: str
) -> None:
    """The caller gets the answer, also where the error names no field; the next call asks once."""
    seen: list[dict[str, Any]] = []
    with listening(_serve(seen, _strict("stream_options", said, _STREAM, status))) as endpoint:
        client = SyncTransport()
        for _ in range(2):
            assert "".join(map(str, client.stream(endpoint, _ASK))) == "hi"
        client.close()
    assert ["stream_options" in body for body in seen] == [True, False, False]
    assert all(body["stream"] and body["max_tokens"] == 3 for body in seen)


def test_embeddings_are_asked_for_without_a_format_where_it_is_refused() -> None:
    """The same for `encoding_format`."""
    seen: list[dict[str, Any]] = []
    with listening(_serve(seen, _strict("encoding_format", "{}", _ROWS, 422))) as endpoint:
        client = SyncTransport()
        for _ in range(2):
            assert client.embed(endpoint, ["x"]).vectors == ((0.5,),)
        client.close()
    assert ["encoding_format" in body for body in seen] == [True, False, False]


def test_the_limit_of_tokens_gets_the_name_that_the_endpoint_wants() -> None:
    """Newer endpoints refuse `max_tokens` and name `max_completion_tokens`; its value is kept."""
    said = '{"error": {"message": "\'max_tokens\' is unsupported. Use \'max_completion_tokens\'."}}'
    seen: list[dict[str, Any]] = []

    def judge(body: dict[str, Any]) -> bytes:
        strict = _strict("max_tokens", said, _STREAM if "stream" in body else _WHOLE)(body)
        return strict if "stream_options" not in body else head(400) + b"stream_options"

    with listening(_serve(seen, judge)) as endpoint:
        client = SyncTransport()
        assert "".join(map(str, client.stream(endpoint, _ASK))) == "hi"
        assert client.chat(endpoint, _ASK).content == "hi"
        client.close()
    assert [body.get("max_completion_tokens") for body in seen] == [None, None, 3, 3]


def test_a_second_try_has_the_time_of_a_first() -> None:
    """Reading the error has a short limit of its own, which does not hold for the answer."""
    bounds = Bounds(Endpoint("http://far", "m", "openai"), Timeouts(), None, 1800.0)
    bounds.begin("the first token", 600.0)
    bounds.expect("the text of an error", 10.0)
    bounds.again()
    assert bounds.left_s() > 300.0


@pytest.mark.parametrize(
    ("said", "kind", "asked"),
    [
        (
            '{"error": {"message": "temperature is wrong", "param": "temperature"}}',
            InvalidRequest,
            2,
        ),
        ('{"error": {"message": "maximum context length is 8"}}', PromptTooLong, 1),
    ],
)
def test_a_request_that_is_wrong_by_itself_is_refused_as_that(
    said: str, kind: type[Exception], asked: int
) -> None:
    """At most one more try, and nothing is learned from it."""
    seen: list[dict[str, Any]] = []
    with listening(_serve(seen, lambda _body: head(400) + said.encode())) as endpoint:
        client = SyncTransport()
        with pytest.raises(kind):
            client.stream(endpoint, _ASK)
        assert len(seen) == asked
        with pytest.raises(kind):
            client.stream(endpoint, _ASK)
        client.close()
    assert "stream_options" in seen[asked]


def test_an_endpoint_that_took_our_fields_is_not_asked_twice_for_a_mistake() -> None:
    """Once it has answered a stream with options, an error of another kind is the caller's."""
    seen: list[dict[str, Any]] = []

    def judge(body: dict[str, Any]) -> bytes:
        return _STREAM if len(seen) == 1 else head(400) + b'{"error": {"message": "no"}}'

    with listening(_serve(seen, judge)) as endpoint:
        client = SyncTransport()
        assert len(list(client.stream(endpoint, _ASK))) == 2
        with pytest.raises(InvalidRequest):
            client.stream(endpoint, _ASK)
        client.close()
    assert len(seen) == 2
