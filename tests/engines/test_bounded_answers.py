"""Every answer has bounds, in bytes and in seconds; what no model said is no progress."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from backends.openai import SyncTransport, Timeouts, bounds, transport
from backends.openai.bounds import Bounds
from budget.errors import (
    DeadlineExceeded,
    EndpointError,
    EndpointUnavailable,
    EngineTimeout,
    QueueFull,
)
from tests.engines.hostile import (
    ASK,
    EVENT_STREAM,
    ask,
    floods,
    head,
    listening,
    read_request,
    says,
    token,
    trickles,
)

BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
EVERY = pytest.mark.parametrize("operation", ["chat", "stream", "embed"])
_GOOD = b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}'
_BOMB = gzip.compress(b" " * (64 << 20))


# -- bytes -------------------------------------------------------------------------------------------


@BOTH
@EVERY
def test_an_endless_body_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, operation: str, *, is_async: bool
) -> None:
    """At the bound of its kind, which the error names; nobody reads what comes after."""
    for name in ("CHAT_BYTES", "EMBED_BYTES", "STREAM_BYTES"):
        monkeypatch.setattr(transport, name, 1 << 20)
    start = EVENT_STREAM if operation == "stream" else head()
    again = token() if operation == "stream" else b'{"a": "' + b"a" * 1000
    with (
        listening(floods(start, again)) as endpoint,
        pytest.raises(EndpointError, match="more than an answer may have") as caught,
    ):
        ask(operation, endpoint, is_async=is_async)
    assert caught.value.facts["limit_bytes"] < 2 << 20  # type: ignore[operator]


@BOTH
def test_a_stream_has_a_bound_of_its_pieces(
    monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Each piece costs its consumer more than its bytes."""
    monkeypatch.setattr(bounds, "STREAM_PIECES", 1000)
    with (
        listening(floods(EVENT_STREAM, token())) as endpoint,
        pytest.raises(EndpointError, match="more than 1000 events"),
    ):
        ask("stream", endpoint, is_async=is_async)


@BOTH
@pytest.mark.parametrize(
    "again", [b": ping\n\n", b"\n", b"data: {}\n\n", token(""), b"data: \n\n", b"\r", b"x: y\n"]
)
def test_a_flood_without_a_token_is_broken_off(
    monkeypatch: pytest.MonkeyPatch, again: bytes, *, is_async: bool
) -> None:
    """Comments, empty lines, events and deltas count as bytes, and not as pieces of an answer."""
    monkeypatch.setattr(transport, "STREAM_BYTES", 1 << 20)
    with (
        listening(floods(EVENT_STREAM, again)) as endpoint,
        pytest.raises(EndpointError, match=r"more than an answer.* 0 tokens"),
    ):
        ask("stream", endpoint, is_async=is_async)


@BOTH
@EVERY
def test_interim_answers_without_end_are_broken_off(operation: str, *, is_async: bool) -> None:
    """`100 Continue` again and again is no answer; the bound of a head ends it."""
    with (
        listening(floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n")) as endpoint,
        pytest.raises(EndpointError, match=f"over {bounds.HEAD_BYTES} bytes"),
    ):
        ask(operation, endpoint, is_async=is_async)


@BOTH
def test_headers_without_end_are_broken_off(*, is_async: bool) -> None:
    """Many headers, one long header, one long chunk border."""
    for start, again in (
        (b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Y: ", b"z"),
        (head(200, "Transfer-Encoding: chunked") + b"5;", b"z"),
    ):
        with (
            listening(floods(start, again)) as endpoint,
            pytest.raises((EndpointError, EndpointUnavailable)),
        ):
            ask("chat", endpoint, is_async=is_async)


def test_a_line_of_a_stream_is_bounded_in_memory_and_time() -> None:
    """A line that never ends, in many small parts, is neither kept nor copied again for each."""
    with (
        listening(floods(EVENT_STREAM + b"data: ", b"a" * 1000)) as endpoint,
        pytest.raises(EndpointError, match="an event of the stream is larger"),
    ):
        ask("stream", endpoint)


@BOTH
@EVERY
def test_a_compressed_answer_is_refused_by_name(operation: str, *, is_async: bool) -> None:
    """Identity was asked for; what gzip expands to has no bound."""
    body = head(200, "Content-Encoding: gzip", f"Content-Length: {len(_BOMB)}") + _BOMB
    with listening(says(body)) as endpoint, pytest.raises(EndpointError, match="gzip") as caught:
        ask(operation, endpoint, is_async=is_async)
    assert caught.value.facts["content_encoding"] == "gzip"


def test_a_compressed_error_keeps_its_status() -> None:
    """What the status means is known without the words."""
    with (
        listening(says(head(429, "Content-Encoding: br") + _BOMB)) as endpoint,
        pytest.raises(QueueFull, match="encoded as br"),
    ):
        ask("chat", endpoint)
    with listening(says(head(200, "Content-Encoding: identity") + _GOOD)) as endpoint:
        assert ask("chat", endpoint).content == "ok"


@BOTH
def test_of_an_endless_error_the_beginning_is_read(*, is_async: bool) -> None:
    """An error's status is what matters; its words are quoted as far as they fit."""
    with (
        listening(floods(head(503), b"so sorry, ")) as endpoint,
        pytest.raises(EndpointUnavailable, match=r"answered 503: so sorry.*\[\.\.\.\]") as caught,
    ):
        ask("chat", endpoint, is_async=is_async)
    assert len(str(caught.value)) < 600


_CHILD = """
import asyncio, json, resource, sys
from backends.base import Capabilities, Endpoint
from backends.openai import AsyncTransport, ChatRequest, SyncTransport
from budget.errors import KeepwarmError

url, operation, door = sys.argv[1:]
endpoint = Endpoint(url, "m", "openai", capabilities=Capabilities(embeddings=True))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

async def main():
    client = AsyncTransport()
    if operation == "chat":
        return await client.chat(endpoint, ChatRequest("x"))
    async for _ in await client.stream(endpoint, ChatRequest("x")):
        pass

def blocking():
    client = SyncTransport()
    if operation == "chat":
        return client.chat(endpoint, ChatRequest("x"))
    for _ in client.stream(endpoint, ChatRequest("x")):
        pass

try:
    asyncio.run(main()) if door == "loop" else blocking()
    error = None
except KeepwarmError as exc:
    error = type(exc).__name__
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"error": error, "grown_bytes": (after - before) * 1024}))
"""


@pytest.mark.parametrize("door", ["thread", "loop"])
@pytest.mark.parametrize(
    ("operation", "start", "again"),
    [
        ("chat", head(), b'{"choices": [' + b"{}," * 2000),
        ("chat", head(200, "Content-Encoding: gzip"), _BOMB),
        ("chat", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("stream", EVENT_STREAM, b": " + b"ping " * 2000 + b"\n"),
        ("stream", EVENT_STREAM, b"data: " + b"[" * 60000 + b"\n"),
    ],
    ids=["body", "gzip", "continue", "comments", "event"],
)
def test_no_answer_takes_the_clients_memory(
    operation: str, start: bytes, again: bytes, door: str
) -> None:
    """With the real bounds, in a process of its own: an endless answer costs a few times its bound."""
    with listening(floods(start, again)) as endpoint:
        told = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_CHILD), endpoint.base_url, operation, door],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    found = json.loads(told.stdout)
    assert found["error"] == "EndpointError"
    assert found["grown_bytes"] < 200 << 20


# -- seconds -----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("again", [b": ping\n\n", b"data: {}\n\n", token(""), b"\n", b"d"])
def test_what_is_no_token_does_not_postpone_the_first(again: bytes, *, is_async: bool) -> None:
    """A prompt that evaluates, or a server that pings, is bounded by the wait for the first token."""
    with (
        listening(trickles(EVENT_STREAM, again)) as endpoint,
        pytest.raises(EngineTimeout, match=r"the first token took over 0\.2 s") as caught,
    ):
        ask("stream", endpoint, Timeouts(first_token_s=0.2), is_async=is_async)
    assert caught.value.facts["tokens"] == 0
    assert caught.value.facts["bytes"] > 0  # type: ignore[operator]


@BOTH
@pytest.mark.parametrize("again", [b": ping\n\n", b"data: {}\n\n", token("")])
def test_what_is_no_token_does_not_postpone_the_next(again: bytes, *, is_async: bool) -> None:
    """After a token, too; the error tells what was seen."""
    with (
        listening(trickles(EVENT_STREAM + token() + token(), again)) as endpoint,
        pytest.raises(EngineTimeout, match=r"the next token took over 0\.2 s.* 2 tokens"),
    ):
        ask("stream", endpoint, Timeouts(between_tokens_s=0.2), is_async=is_async)


@BOTH
@pytest.mark.parametrize(
    ("start", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        (head(), b" "),
        (head(200, "Transfer-Encoding: chunked"), b"1\r\n \r\n"),
    ],
    ids=["header", "interim", "body", "chunks"],
)
def test_a_trickle_does_not_postpone_a_whole_answer(
    start: bytes, again: bytes, *, is_async: bool
) -> None:
    """Bytes are no progress: the time of the whole answer is what counts."""
    with (
        listening(trickles(start, again)) as endpoint,
        pytest.raises(EngineTimeout, match=r"the whole answer took over 0\.2 s"),
    ):
        ask("chat", endpoint, Timeouts(answer_s=0.2), is_async=is_async)


@BOTH
def test_a_stream_of_tokens_has_an_end(*, is_async: bool) -> None:
    """A model that babbles for ever is bounded by the time of the whole stream."""
    with (
        listening(trickles(EVENT_STREAM, token())) as endpoint,
        pytest.raises(EngineTimeout, match=r"the whole answer took over 0\.3 s"),
    ):
        ask("stream", endpoint, Timeouts(stream_s=0.3), is_async=is_async)


def test_the_text_of_an_error_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A status is here; its words may never come."""
    monkeypatch.setattr(transport, "ERROR_BODY_S", 0.1)
    with (
        listening(says(head(503) + b"wait a m", then_wait=True)) as endpoint,
        pytest.raises(EndpointUnavailable, match="wait a m"),
    ):
        ask("chat", endpoint)


@BOTH
@EVERY
def test_the_deadline_of_a_call_holds_at_an_endpoint(operation: str, *, is_async: bool) -> None:
    """Whatever the endpoint sends, or does not."""
    start = EVENT_STREAM if operation == "stream" else head()
    for serve in (
        trickles(start, token()),
        says(then_wait=True),
        says(b"HTTP/1.1", then_wait=True),
        says(start, then_wait=True),
    ):
        with listening(serve) as endpoint, pytest.raises(DeadlineExceeded, match="deadline passed"):
            ask(operation, endpoint, deadline=time.monotonic() + 0.1, is_async=is_async)


@BOTH
def test_a_deadline_that_has_passed_sends_nothing(*, is_async: bool) -> None:
    """A call that waited for its lease too long is over."""
    seen: list[bytes] = []
    with (
        listening(lambda connection: seen.append(read_request(connection))) as endpoint,
        pytest.raises(DeadlineExceeded),
    ):
        ask("chat", endpoint, deadline=time.monotonic() - 1.0, is_async=is_async)
    assert not any(seen)


def test_a_deadline_holds_between_two_pieces() -> None:
    """Also where the next piece is here already."""
    with listening(says(EVENT_STREAM + token(), token(), then_wait=True)) as endpoint:
        client = SyncTransport()
        stream = client.stream(endpoint, ASK, deadline=time.monotonic() + 60)
        next(stream)
        flows = stream._flows
        flows._exchange.bounds._deadline = time.monotonic()  # type: ignore[attr-defined]
        flows._ready.clear()  # type: ignore[attr-defined]
        with pytest.raises(DeadlineExceeded):
            next(stream)
        client.close()


def test_sending_is_bounded_too() -> None:
    """A server that does not read gets no time without end."""
    asked = threading.Event()

    def serve(connection: socket.socket) -> None:
        asked.wait(10.0)

    with listening(serve) as endpoint:
        long = type(ASK)("x" * (8 << 20))
        with pytest.raises(EngineTimeout):
            SyncTransport(Timeouts(answer_s=0.2)).chat(endpoint, long)
        asked.set()


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_the_callers_own_time_is_not_the_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces only waiting counts, over all pieces that were no token."""
    clock = Clock(monkeypatch)
    limits = Bounds("m", Timeouts(first_token_s=10, between_tokens_s=5), None, 1e6)
    limits.expect("the first token", 10)
    clock.now += 4
    limits.paused()
    clock.now += 500
    limits.waiting()
    assert limits.left_s() == pytest.approx(6)
    limits.heard(1, 1)
    clock.now += 3
    limits.paused()
    clock.now += 500
    limits.waiting()
    clock.now += 1
    limits.heard(2, 0)
    assert limits.left_s() == pytest.approx(1)
    clock.now += 1
    limits.took(7)
    with pytest.raises(EngineTimeout, match=r"the next token took over 5 s.*2 events") as caught:
        limits.left_s()
    assert caught.value.facts == {
        "phase": "the next token", "limit_s": 5, "bytes": 7, "events": 2, "tokens": 1,
    }  # fmt: skip


def test_the_nearest_bound_gives_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phase, whole answer and deadline end a wait, whichever comes first."""
    clock = Clock(monkeypatch)

    def left(deadline: float | None, total_s: float) -> tuple[float, str]:
        limits = Bounds("m", Timeouts(connect_s=50), deadline, total_s)
        limits.expect("the first token", 100)
        return limits.left_s(), f"{limits.expired()!r:.40}"

    assert left(None, 1e6) == (100, "EngineTimeout('m: the first token took o")
    assert left(None, 60) == (60, "EngineTimeout('m: the whole answer took ")
    assert left(clock.now + 30, 60)[0] == pytest.approx(30)
    assert left(clock.now + 30, 60)[1].startswith("DeadlineExceeded")
    assert Bounds("m", Timeouts(connect_s=5), None, 60).connect_s() == 5


# -- the end of a stream -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("again", [b"", b": more\n" * 1000], ids=["silence", "flood"])
def test_after_its_last_event_a_stream_is_not_waited_for(again: bytes, *, is_async: bool) -> None:
    """The answer is whole at `[DONE]`: what a server does then is bounded and no error."""
    start = EVENT_STREAM + token() + b"data: [DONE]\n\n"
    serve = floods(start, again) if again else says(start, then_wait=True)
    with listening(serve) as endpoint:
        assert [delta.content for delta in ask("stream", endpoint, is_async=is_async)] == ["a"]
