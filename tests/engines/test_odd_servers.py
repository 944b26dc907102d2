"""What servers send that is odd and meant: it is read as it is meant, or refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.openai import ChatRequest, Completion, Delta, assemble
from backends.openai.answers.reading import StreamReader
from backends.openai.masking import NO_SECRETS
from backends.openai.protocol import parse_completion, parse_embeddings
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    KeepwarmError,
    PromptTooLong,
    QueueFull,
)
from tests.engines.test_odd_fields import ERROR, FAR, exchange

_PART = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _said(content: object = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {"content": content, **more} if content is not None else more
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def _read(*parts: bytes) -> Completion:
    reader = StreamReader(FAR, NO_SECRETS, "text/event-stream")
    deltas = [delta for part in parts for delta in reader.feed(part)]
    if not reader.done:
        deltas += reader.ended()
    return assemble(deltas)


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "parts",
    [
        (b"data:\n\n", _said("hi", "stop"), DONE),
        (_said("hi"), _said(finish="stop")),
        (_said("hi", "stop"), b"data: [DONE]\n"),
        (_said("hi", "stop"), b"data: [DONE]"),
        (_said("hi", "stop").replace(b"\n", b"\r"), b"data: [DONE]\r\r"),
        (_said([{"type": "text", "text": "hi"}], "stop"), DONE),
        (_said("hi"), _said(finish="stop").rstrip()),
    ],
)
def test_streams_that_are_whole_are_read_as_such(parts: tuple[bytes, ...]) -> None:
    """With an empty event, without `[DONE]` or a line end after it, with CR, in parts."""
    assert (_read(*parts).content, _read(*parts).finish_reason) == ("hi", "stop")


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        (
            (b'error: {"code":400,"message":"exceeds the available context size"}\n\n', DONE),
            PromptTooLong,
            "context size",
        ),
        ((json.dumps(ERROR).encode(),), PromptTooLong, "too long"),
        ((_event({"object": "error", "message": "max", "code": 429}), DONE), QueueFull, "max"),
        ((_said("hi"),), EndpointUnavailable, "without"),
        (
            (_said("hi"), _event({"error": {"message": "", "code": 502}})),
            EndpointUnavailable,
            "502",
        ),
        ((_said("hi"), b'data: {"choices": ['), EndpointUnavailable, "without"),
        ((b"<html>502</html>",), EndpointError, "<html>502"),
        ((b"",), EndpointUnavailable, "without"),
        ((b'event: error\ndata: {"message": "busy", "code": "429"}\n\n', DONE), QueueFull, "busy"),
        ((b"event: error\ndata: it broke\n\n", DONE), EndpointError, "it broke"),
        ((b'event: error\ndata: {"error": {"message": "max"}}\n\n', DONE), EndpointError, ": max."),
        ((_event({"error": "it broke"}), DONE), EndpointError, "it broke"),
        ((_event({"detail": "it broke"}), DONE), EndpointError, "it broke"),
        ((_event({"success": False, "errors": [{"message": "it"}]}), DONE), EndpointError, ": it."),
        ((_event({"message": "slow down", "type": "rate_limit_error"}), DONE), QueueFull, "slow"),
        (
            (_event({"choices": [{"error": {"message": "gone", "code": 503}}]}), DONE),
            EndpointUnavailable,
            "gone",
        ),
        (
            (_event({"error": {"message": "no", "code": "context_length_exceeded"}}), DONE),
            PromptTooLong,
            "no",
        ),
        ((DONE,), EndpointError, "answered with nothing"),
        ((_event({"choices": [], "usage": {}}), DONE), EndpointError, "answered with nothing"),
    ],
)
def test_streams_that_are_not_are_typed(
    parts: tuple[bytes, ...], kind: type[KeepwarmError], words: str
) -> None:
    """Errors under other names and without a frame, broken ends, pages; with the server's words."""
    with pytest.raises(kind, match=words) as caught:
        _read(*parts)
    if kind is PromptTooLong and b"n_ctx" in parts[0]:
        assert (caught.value.facts["n_prompt_tokens"], caught.value.facts["n_ctx"]) == (9, 8)
    if kind is EndpointUnavailable:
        assert caught.value.facts["text"] == ("hi" if b"hi" in parts[0] else "")


def _call(**fields: Any) -> bytes:
    function = {name: fields.pop(name) for name in ("name", "arguments") if name in fields}
    return _said(tool_calls=[{**fields, "function": function}])


@pytest.mark.parametrize(
    ("parts", "calls"),
    [
        (
            [
                _call(index=0, id="a", name="f", arguments='{"c":1}'),
                _call(index=0, id="b", name="g", arguments='{"c":2}'),
            ],
            [("f", {"c": 1}), ("g", {"c": 2})],
        ),
        (
            [
                _call(index=0, id="a", name="f", arguments='{"c":'),
                _call(index=0, id="a", name="f", arguments="1}"),
            ],
            [("f", {"c": 1})],
        ),
        ([_call(id="a", name="f", arguments='{"x":'), _call(arguments="1}")], [("f", {"x": 1})]),
        ([_call(index=None, id="a", name="f", arguments="{}")], [("f", {})]),
        ([_call(index=0, id=7, name="f", arguments={"c": 1})], [("f", {"c": 1})]),
        (
            [
                _call(index=1, id="b", name="g", arguments="{"),
                _call(index=0, id="a", name="f", arguments="{}"),
                _call(index=1, arguments="}"),
            ],
            [("g", {}), ("f", {})],
        ),
    ],
)
def test_calls_of_tools_are_put_together_as_they_are_meant(
    parts: list[bytes], calls: list[tuple[str, Any]]
) -> None:
    """With one index for all, the name in every piece, no index, arguments as an object."""
    found = [call["function"] for call in _read(*parts, DONE).tool_calls]
    assert [(call["name"], json.loads(call["arguments"])) for call in found] == calls


def test_halves_of_characters_are_joined() -> None:
    """Also with an empty piece between them; a half without the other is replaced."""
    assert _read(_said("a\ud83d"), _said(""), _said("\ude00b"), DONE).content == "a😀b"
    assert _read(_said("\ud83d"), _said("a\ude00"), DONE).content == "�a�"
    whole = parse_completion({"choices": [{"message": {"content": "\ud83dx"}}]})
    assert whole.content == "�x"


def test_reasoning_may_be_parts_of_the_content() -> None:
    """Streamed and whole."""
    parts = [_PART, {"type": "text", "text": "hi"}]
    assert _read(_said(parts, "stop"), DONE).reasoning == "hm"
    whole = parse_completion({"choices": [{"message": {"content": parts}}]})
    assert (whole.content, whole.reasoning) == ("hi", "hm")


@pytest.mark.parametrize(
    ("rows", "vectors"),
    [
        ([{"index": 0, "embedding": [[0.5, 2]]}], [(0.5, 2.0)]),
        ([{"index": 0, "embedding": "AAAAPwAAgD4="}], [(0.5, 0.25)]),
        ([{"embedding": [0.5]}, {"embedding": [0.25]}], [(0.5,), (0.25,)]),
        ([{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}], [(1.0,), (2.0,)]),
        ([{"index": 2, "embedding": [2]}, {"index": 1, "embedding": [1]}], [(1.0,), (2.0,)]),
    ],
)
def test_vectors_are_read_in_the_forms_in_which_servers_send_them(
    rows: list[Any], vectors: list[tuple[float, ...]]
) -> None:
    """Nested, in base64, without an index, with one for all."""
    assert list(parse_embeddings({"data": rows}, len(rows)).vectors) == vectors


@pytest.mark.parametrize(
    "rows",
    [
        [{"index": 0, "embedding": [None, 0.2]}],
        [{"index": 0, "embedding": [True]}],
        [{"index": 0, "embedding": []}],
        [{"index": 0, "embedding": "AAAA"}],
        [{"index": 0, "embedding": "AACAfw=="}],
        [{"index": 0, "embedding": "?"}],
        [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}],
        [{"index": 0, "embedding": [1]}, {"embedding": [1]}],
        [{"index": "a", "embedding": [1]}],
        [1],
    ],
)
def test_vectors_that_are_none_are_typed(rows: list[Any]) -> None:
    """Nulls, booleans, infinities, other lengths, an order that cannot be known."""
    with pytest.raises(EndpointError, match="shape"):
        parse_embeddings({"data": rows}, len(rows))


def test_a_good_answer_with_a_null_error_is_good() -> None:
    """Some servers always send the field."""
    raw = b'{"error": null, "choices": [{"message": {"content": "ok"}}]}'
    assert exchange().parsed(raw, parse_completion).content == "ok"
    raw = b'{"error": {}, "choices": [{"message": {"content": "ok"}}]}'
    assert exchange().parsed(raw, parse_completion).content == "ok"
    with pytest.raises(QueueFull, match="Rate limit"):
        exchange().parsed(b'{"error": {"message": "Rate limit", "code": 429}}', parse_completion)


def test_a_request_is_what_it_was() -> None:
    """The types that callers see did not change."""
    assert ChatRequest("x").options == {}
    assert str(Delta(content="x")) == "x"
    assert Delta().is_empty
    assert Delta(content="x").is_token
    assert not Delta(role="assistant").is_token
