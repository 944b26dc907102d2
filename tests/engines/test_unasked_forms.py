"""A whole answer where a stream was asked for, and a stream where a whole answer was: both are read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from backends.openai import SyncTransport, assemble
from backends.openai.answers.reading import StreamReader
from backends.openai.connections.bounds import EVENT_BYTES
from backends.openai.masking import NO_SECRETS
from backends.openai.protocol import Completion, decode, parse_completion
from budget.errors import EndpointError, KeepwarmError
from tests.engines.hostile import ASK, EVENT_STREAM, ask, listening, says, token
from tests.engines.test_odd_fields import FAR, WHOLE


@pytest.mark.parametrize("indent", [None, 2])
def test_a_whole_answer_in_the_place_of_a_stream_is_one_delta(indent: int | None) -> None:
    """Some proxies leave `stream` out. Two calls without an index or an id stay two."""
    calls = [{"function": {"name": name, "arguments": "{}"}} for name in ("f", "g")]
    message = {"role": "assistant", "content": "hi", "tool_calls": calls}
    answer = {
        "choices": [{"message": message, "finish_reason": None}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    reader = StreamReader(FAR, NO_SECRETS, "application/json")
    raw = json.dumps(answer, indent=indent).encode()
    assert [reader.feed(raw[at : at + 7]) for at in range(0, len(raw), 7)] == [[]] * -(
        -len(raw) // 7
    )
    (delta,) = reader.ended()
    assert reader.done
    whole = assemble([delta])
    assert whole == replace(parse_completion(answer), tool_calls=whole.tool_calls)
    assert [call["function"]["name"] for call in whole.tool_calls] == ["f", "g"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (json.dumps(WHOLE)[:-9], "not JSON of this protocol"),
        ('{"status": "ok"}', "no stream of events"),
        ('{"choices": []}', "no stream of events"),
        ('{"error": {"message": "busy", "code": 429}}', "answered 429: busy"),
        ('{"choices": "' + "x" * EVENT_BYTES, f"{FAR.place}: an event .* {EVENT_BYTES} bytes"),
    ],
)
def test_a_document_that_is_no_answer_ends_a_stream_with_a_typed_error(
    said: str, words: str
) -> None:
    """One that is cut off, of another protocol, an error, or without end."""
    reader = StreamReader(FAR, NO_SECRETS, "application/json")
    with pytest.raises(KeepwarmError, match=words):
        assemble([*reader.feed(said.encode()), *reader.ended()])


@pytest.mark.parametrize("is_async", [False, True])
def test_events_in_the_place_of_a_whole_answer_are_put_together(*, is_async: bool) -> None:
    """Some endpoints always stream. An error among the events is the call's error."""
    end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    good = token("h") + token("i") + end + b"data: [DONE]\n\n"
    with listening(says(EVENT_STREAM + good)) as endpoint:
        answer = ask("chat", endpoint, is_async=is_async)
    assert (answer.content, answer.finish_reason) == ("hi", "stop")
    bad = b": ping\n\n" + token("h") + b'data: {"error": {"message": "it broke"}}\n\n'
    with (
        listening(says(EVENT_STREAM + bad)) as endpoint,
        pytest.raises(EndpointError, match="it broke"),
    ):
        ask("chat", endpoint, is_async=is_async)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (b'data: {"error": {"message": "it broke"}}\n\n', "it broke"),
        (b"data: no JSON\n\n", "not JSON of this protocol"),
        (b"data: " + b"x" * (EVENT_BYTES + 1), f"{EVENT_BYTES} bytes"),
    ],
)
def test_pieces_in_one_packet_with_what_is_wrong_reach_the_reader_first(
    wrong: bytes, words: str
) -> None:
    """The caller has read "hi" by the time of the error, however the network cut the stream."""
    said: list[str] = []
    with listening(says(EVENT_STREAM + token("h") + token("i") + wrong)) as endpoint:
        client = SyncTransport()
        with (
            client.stream(endpoint, ASK) as stream,
            pytest.raises(KeepwarmError, match=words),
        ):
            said.extend(delta.content for delta in stream)
        client.close()
    assert said == ["h", "i"]


def test_a_mark_of_byte_order_before_an_answer_is_no_part_of_it() -> None:
    """In a stream it took the first piece with it, without a word."""
    mark, done = b"\xef\xbb\xbf", b"data: [DONE]\n\n"
    reader = StreamReader(FAR, NO_SECRETS)
    raw = mark + token("h") + token("i") + done
    deltas = [delta for at in range(len(raw)) for delta in reader.feed(raw[at : at + 1])]
    assert assemble(deltas).content == "hi"
    with listening(says(EVENT_STREAM + raw)) as endpoint:
        assert ask("chat", endpoint, is_async=False).content == "hi"
    document = StreamReader(FAR, NO_SECRETS)
    assert document.feed(mark + json.dumps(WHOLE).encode()) == []
    assert assemble(document.ended()).content == parse_completion(WHOLE).content
    assert decode(mark + b"{}") == {}


def test_pieces_of_a_second_answer_and_the_whole_answer_after_its_pieces_are_left_out() -> None:
    """`extra = {"n": 2}` makes a stream of two answers; some endpoints end with all of the text."""

    def piece(index: int, of: str, text: str, **more: object) -> bytes:
        choice = {"index": index, of: {"content": text}, **more}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    def read(*pieces: bytes) -> Completion:
        reader = StreamReader(FAR, NO_SECRETS)
        return assemble(reader.feed(b"".join([*pieces, b"data: [DONE]\n\n"])))

    begin = (
        b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}]}\n\n'
    )
    pieces = [begin, piece(0, "delta", "h"), piece(1, "delta", "no"), piece(0, "delta", "h")]
    answer = read(*pieces, piece(0, "message", "hh", finish_reason="stop"))
    assert (answer.content, answer.finish_reason) == ("hh", "stop")
    text = b'data: {"choices": [{"text": "h", "index": 0}]}\n\n'
    assert read(text, text, text).content == "hhh"
