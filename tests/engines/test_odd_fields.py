"""Any JSON in any field: an answer of the declared types, or an error of keepwarm's; and known oddities."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Capabilities, Endpoint
from backends.openai import (
    Completion,
    Delta,
    Embeddings,
    Timings,
    Usage,
    assemble,
)
from backends.openai.answers.fields import COUNT, MILLISECONDS, figures
from backends.openai.answers.foreign_errors import Heard, error_from_answer, unreadable
from backends.openai.answers.reading import StreamReader
from backends.openai.connections.bounds import Bounds, Timeouts
from backends.openai.exchange import Exchange, Route
from backends.openai.masking import NO_SECRETS
from backends.openai.protocol import decode, parse_completion, parse_embeddings
from backends.openai.resume import AnswerSoFar, ResumeReader, templated
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    InvalidRequest,
    KeepwarmError,
)

FAR = Endpoint("http://far", "m", "openai", capabilities=Capabilities(embeddings=True))
_CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_LOGPROBS = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]}
_TIMINGS = {"prompt_n": 1, "cache_n": 0, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0}
_USAGE = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "prompt_tokens_details": {"cached_tokens": 1},
}
_SAID = {"role": "assistant", "content": "a", "reasoning_content": "b", "tool_calls": [_CALL]}
_PART = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}

WHOLE: dict[str, Any] = {
    "choices": [{"index": 0, "message": _SAID, "finish_reason": "stop", "logprobs": _LOGPROBS}],
    "usage": _USAGE,
    "timings": _TIMINGS,
}
CHUNK: dict[str, Any] = {
    "choices": [{"index": 0, "delta": _SAID, "finish_reason": None, "logprobs": _LOGPROBS}],
    "usage": _USAGE,
    "timings": _TIMINGS,
}
PARTS: dict[str, Any] = {
    "choices": [{"message": {"content": [_PART, {"type": "text", "text": "a"}]}}]
}
ROWS: dict[str, Any] = {
    "data": [{"index": 0, "embedding": [0.1, 2]}, {"index": 1, "embedding": [0.3, 0.4]}],
    "usage": _USAGE,
}
GOING_ON: dict[str, Any] = {
    "content": "a",
    "stop": False,
    "stop_type": "none",
    "tokens_predicted": 1,
    "timings": _TIMINGS,
}
ERROR: dict[str, Any] = {
    "error": {
        "message": "too long",
        "type": "exceed_context_size_error",
        "param": "x",
        "code": 400,
        "n_prompt_tokens": 9,
        "n_ctx": 8,
    }
}

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["\ud83d", "\ude00", "", "stop", "text", "thinking", "zczMPc3MTD4="])
)
ANY = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["content", "text", "index", "function", "id", "name", "arguments", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield from _places(item, (*at, key))


@st.composite
def odd(draw: st.DrawFn, good: dict[str, Any]) -> dict[str, Any]:
    """A good answer with any JSON in one or two of its fields, or without them."""
    answer = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from([at for at in _places(answer) if at] or [("x",)]))
        inner = answer
        for key in way:
            inner = inner[key]
        if draw(st.integers(0, 5)) == 0 and answer:
            del inner[last]
        else:
            inner[last] = draw(ANY)
    return answer


FUZZ = settings(derandomize=True, deadline=None, max_examples=150)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.encode() is not None


def _check_calls(calls: Any) -> None:
    for call in calls:
        assert isinstance(call.get("index", 0), int)
        assert isinstance(call.get("id", ""), str)
        function = call.get("function", {})
        assert all(_is_text(text) for text in function.values())


def _check_figures(usage: Usage | None, timings: Timings | None) -> None:
    if usage is not None:
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
        assert all(type(count) is int and 0 <= count <= 2**53 for count in counts)
    if timings is not None:
        counts = (timings.prompt_n, timings.cache_n, timings.predicted_n)
        assert all(type(count) is int and 0 <= count <= 2**53 for count in counts)
        times = (timings.prompt_ms, timings.predicted_ms)
        assert all(type(t) is float and math.isfinite(t) and t >= 0 for t in times)


def _check_whole(answer: Completion) -> None:
    assert _is_text(answer.content)
    assert _is_text(answer.reasoning)
    assert _is_text(answer.role)
    assert answer.finish_reason is None or _is_text(answer.finish_reason)
    _check_calls(answer.tool_calls)
    assert all(isinstance(item, dict) for item in answer.logprobs)
    _check_figures(answer.usage, answer.timings)


def exchange() -> Exchange:
    """A request that has been answered."""
    return Exchange(FAR, Route.to(FAR), "/x", b"", Bounds(FAR, Timeouts(), None, 1e6))


@given(value=odd(WHOLE) | odd(PARTS) | odd(ERROR))
@FUZZ
def test_any_field_of_a_whole_answer_may_be_anything(value: dict[str, Any]) -> None:
    """A completion of its types, or an error; nothing bare."""
    try:
        answer = exchange().parsed(json.dumps(value).encode(), parse_completion)
    except KeepwarmError as error:
        json.dumps(error.to_wire())
        return
    _check_whole(answer)


@given(values=st.lists(odd(CHUNK) | odd(ERROR) | st.just(CHUNK), min_size=1, max_size=4))
@FUZZ
def test_any_field_of_a_stream_may_be_anything(values: list[dict[str, Any]]) -> None:
    """Deltas of their types that make a whole answer, or an error."""
    reader = StreamReader(FAR, NO_SECRETS)
    deltas: list[Delta] = []
    try:
        for value in values:
            deltas += reader.feed(b"data: " + json.dumps(value).encode() + b"\n\n")
        deltas += reader.feed(b"data: [DONE]\n\n")
    except KeepwarmError as error:
        json.dumps(error.to_wire())
    for delta in deltas:
        assert _is_text(delta.content)
        assert _is_text(delta.reasoning)
        _check_figures(delta.usage, delta.timings)
    _check_whole(assemble(deltas))


@given(values=st.lists(odd(GOING_ON) | st.just(GOING_ON), min_size=1, max_size=4))
@FUZZ
def test_any_field_of_a_resumed_stream_may_be_anything(values: list[dict[str, Any]]) -> None:
    """The engine's own protocol is read as carefully."""
    before = AnswerSoFar(Timings(1, 1, 1.0, 1, 1.0), "a")
    reader = ResumeReader(FAR, NO_SECRETS, "", before)
    try:
        for value in values:
            for delta in reader.feed(b"data: " + json.dumps(value).encode() + b"\n\n"):
                assert _is_text(delta.content)
                _check_figures(delta.usage, delta.timings)
    except KeepwarmError as error:
        json.dumps(error.to_wire())


@given(value=odd(ROWS) | odd(ERROR))
@FUZZ
def test_any_field_of_vectors_may_be_anything(value: dict[str, Any]) -> None:
    """As many vectors as texts, all of one length and of finite numbers, or an error."""
    try:
        answer = exchange().parsed(
            json.dumps(value).encode(), lambda found: parse_embeddings(found, 2)
        )
    except KeepwarmError as error:
        json.dumps(error.to_wire())
        return
    assert isinstance(answer, Embeddings)
    assert len(answer.vectors) == 2
    assert len({len(vector) for vector in answer.vectors}) == 1
    assert all(type(x) is float and math.isfinite(x) for vector in answer.vectors for x in vector)
    _check_figures(answer.usage, None)


@given(value=odd(ERROR) | ANY, status=st.integers(100, 999))
@FUZZ
def test_any_field_of_an_error_may_be_anything(value: Any, status: int) -> None:
    """It stays an error, with facts that can be sent on."""
    error = error_from_answer(FAR, status, json.dumps(value).encode())
    assert error.facts["status"] == status
    json.dumps(error.to_wire(), allow_nan=False).encode()
    str(error).encode()


@given(raw=st.binary(max_size=60) | st.text(max_size=30).map(str.encode), cut=st.integers(1, 9))
@FUZZ
def test_any_bytes_may_come_as_a_stream(raw: bytes, cut: int) -> None:
    """Whatever they are and however they are cut."""
    reader = StreamReader(FAR, NO_SECRETS)
    try:
        for start in range(0, len(raw), cut):
            reader.feed(raw[start : start + cut])
        reader.ended()
    except KeepwarmError as error:
        json.dumps(error.to_wire())


@given(value=ANY)
@FUZZ
def test_a_template_may_be_anything(value: Any) -> None:
    """A prompt, or an error."""
    try:
        assert isinstance(templated(decode(json.dumps({"prompt": value}).encode())), str)
    except EndpointError as error:
        json.dumps(error.to_wire())


def test_figures_that_are_none_are_left_out() -> None:
    """An answer is not lost for its usage; what is no count is 0."""
    table = {"n": COUNT, "ms": MILLISECONDS}
    for odd in (-1, 1e300, True, "7", None, [1], 2**60, math.inf, math.nan, 10**400):
        assert figures({"n": odd, "ms": odd}, table) == {"n": 0, "ms": 0.0}
    assert figures({"n": 0.5}, table) == {"n": 0, "ms": 0.0}
    assert figures({"n": 7.0, "ms": 7}, table) == {"n": 7, "ms": 7.0}
    assert figures({"n": 2**53}, table)["n"] == 2**53
    answer = parse_completion(
        {"choices": [{"message": {"content": "x"}}], "usage": [], "timings": "fast"}
    )
    assert (answer.usage, answer.timings) == (Usage(), None)


def _streamed(*choices: dict[str, Any]) -> Completion:
    reader = StreamReader(FAR, NO_SECRETS)
    events = b"".join(
        b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices
    )
    return assemble(reader.feed(events + b"data: [DONE]\n\n"))


def test_what_older_and_other_endpoints_say_is_no_empty_answer() -> None:
    """A call of 2023, a refusal, and the text of a plain completion, in pieces and whole."""
    pieces: list[dict[str, Any]] = [{"name": "f", "arguments": '{"x"'}, {"arguments": ": 1}"}]
    called = _streamed(
        *({"delta": {"function_call": piece}} for piece in pieces),
        {"delta": {}, "finish_reason": "function_call"},
    )
    (call,) = called.tool_calls
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'}
    message = {"content": None, "function_call": {"name": "f", "arguments": {"x": 1}}}
    (call,) = parse_completion({"choices": [{"message": message}]}).tool_calls
    assert call["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert _streamed({"delta": {"refusal": "I "}}, {"delta": {"refusal": "can't"}}).content == (
        "I can't"
    )
    refused = {"message": {"content": None, "refusal": "I can't"}}
    assert parse_completion({"choices": [refused]}).content == "I can't"
    assert _streamed({"text": "a"}, {"text": "b", "finish_reason": "stop"}).content == "ab"
    assert parse_completion({"choices": [{"text": "ab"}]}).content == "ab"


@pytest.mark.parametrize(
    ("body", "words", "hint"),
    [
        (b"", "answered with nothing", "log"),
        (b'data: {"choices": []}\n\n', "is a stream of events", "call stream()"),
        (b'{"message": {}, "done":false}\n{"done": true}\n', "Ollama's own API", "/v1"),
        (b"<!doctype html><p>", "is a web page", "Check the url"),
        (b"42", "It begins: '42'", ""),
    ],
)
def test_an_answer_of_another_kind_is_named_with_what_to_do(
    body: bytes, words: str, hint: str
) -> None:
    """None of them is an answer of the protocol."""
    problem = EndpointError("it is not JSON.")
    error = unreadable(FAR, problem, body, NO_SECRETS)
    assert words in error.message
    assert hint in error.hint


def test_a_redirect_names_a_whole_address() -> None:
    """Also where the endpoint gave a path alone, so that it can be written as the url."""
    heard = Heard(asked="http://far/v1/chat/completions", location="/new/v1/chat/completions")
    error = error_from_answer(FAR, 308, b"", NO_SECRETS, heard)
    assert "answered 308. It sends requests on to http://far/new/v1/chat/completions" in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [(413, InvalidRequest, "Send less"), (529, EndpointUnavailable, "Try again later")],
)
def test_rare_statuses_say_whose_turn_it_is(
    status: int, kind: type[KeepwarmError], hint: str
) -> None:
    """A body over a proxy's bound is the caller's; an overloaded endpoint is asked again later."""
    error = error_from_answer(FAR, status, b"no")
    assert type(error) is kind
    assert hint in error.hint
