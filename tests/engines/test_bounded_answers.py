"""Every answer has a bound in bytes, whatever it is made of; no answer takes the client's memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from backends.openai import transport
from backends.openai.connections import bounds
from budget.errors import (
    EndpointError,
    EndpointUnavailable,
    QueueFull,
)
from tests.engines.hostile import (
    EVENT_STREAM,
    ask,
    floods,
    head,
    listening,
    says,
    token,
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
    """At the bound of its kind, which the error names; the rest of the answer is not read."""
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

url, operation, caller = sys.argv[1:]
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
    asyncio.run(main()) if caller == "loop" else blocking()
    error = None
except KeepwarmError as exc:
    error = type(exc).__name__
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"error": error, "grown_bytes": (after - before) * 1024}))
"""


@pytest.mark.parametrize("caller", ["thread", "loop"])
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
    operation: str, start: bytes, again: bytes, caller: str
) -> None:
    """With the real bounds, in a process of its own: an endless answer costs a few times its bound."""
    with listening(floods(start, again)) as endpoint:
        answer = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(_CHILD), endpoint.base_url, operation, caller],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd=Path(__file__).parents[2],
        )
    found = json.loads(answer.stdout)
    assert found["error"] == "EndpointError"
    assert found["grown_bytes"] < 200 << 20
