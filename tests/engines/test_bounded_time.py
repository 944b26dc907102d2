"""Every answer has bounds in seconds; what no model said is no progress; deadlines hold."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from backends.base import Endpoint
from backends.openai import SyncTransport, Timeouts, transport
from backends.openai.connections.bounds import Bounds
from budget.errors import DeadlineExceeded, EndpointUnavailable, EngineTimeout
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
    """After a token, too; the error says what was seen."""
    with (
        listening(trickles(EVENT_STREAM + token() + token(), again)) as endpoint,
        pytest.raises(EngineTimeout, match=r"the next token took over 0\.2 s.* 2 tokens"),
    ):
        ask("stream", endpoint, Timeouts(between_tokens_s=0.2), is_async=is_async)


def test_a_token_that_an_engine_counts_is_progress() -> None:
    """llama.cpp may hold back the text of a token, and says with `timings` how many there are."""
    counts = [b'data: {"choices":[],"timings":{"predicted_n":%d}}\n\n' % n for n in (1, 2, 2)]
    with (
        listening(says(EVENT_STREAM, *counts, then_wait=True)) as endpoint,
        pytest.raises(EngineTimeout, match=r"the next token.* 3 events, 2 tokens"),
    ):
        ask("stream", endpoint, Timeouts(between_tokens_s=0.2))


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
        asked.wait(60)

    with listening(serve) as endpoint:
        long = type(ASK)("x" * (8 << 20))
        with pytest.raises(EngineTimeout):
            SyncTransport(Timeouts(answer_s=0.2)).chat(endpoint, long)
        asked.set()


M = Endpoint("http://engine", "m", "llama.cpp", socket_path="/nowhere")


class Clock:
    """A clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_the_callers_own_time_is_not_the_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pieces only waiting counts, over all pieces that were no token."""
    clock = Clock(monkeypatch)
    limits = Bounds(M, Timeouts(first_token_s=10, between_tokens_s=5), None, 1e6)
    limits.begin("the first token", 10)
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
        limits = Bounds(M, Timeouts(connect_s=50), deadline, total_s)
        limits.expect("the first token", 100)
        return limits.left_s(), f"{limits.expired()!r:.40}"

    assert left(None, 1e6) == (100, "EngineTimeout('the engine of m: the firs")
    assert left(None, 60) == (60, "EngineTimeout('the engine of m: the whol")
    assert left(clock.now + 30, 60)[0] == pytest.approx(30)
    assert left(clock.now + 30, 60)[1].startswith("DeadlineExceeded")
    assert Bounds(M, Timeouts(connect_s=5), None, 60).connect_s() == 5


# -- the end of a stream -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("again", [b"", b": more\n" * 1000], ids=["silence", "flood"])
def test_after_its_last_event_a_stream_is_not_waited_for(again: bytes, *, is_async: bool) -> None:
    """The answer is whole at `[DONE]`: what a server does then is bounded and no error."""
    start = EVENT_STREAM + token() + b"data: [DONE]\n\n"
    serve = floods(start, again) if again else says(start, then_wait=True)
    with listening(serve) as endpoint:
        assert [delta.content for delta in ask("stream", endpoint, is_async=is_async)] == ["a"]
