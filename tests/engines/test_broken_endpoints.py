"""Connections that break and answers that are none: typed, at once, in every phase, sync and async."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from backends.base import Endpoint
from backends.openai import SyncTransport, Timeouts, async_client, sync_client
from budget.errors import (
    ConfigError,
    DeadlineExceeded,
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    EngineTimeout,
    KeepwarmError,
)
from tests.engines.hostile import (
    ASK,
    EVENT_STREAM,
    Serve,
    ask,
    head,
    listening,
    read_request,
    reset,
    says,
    token,
)

BOTH = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])
_PROMISED = head(200, "Content-Length: 500")

_PHASES: dict[str, tuple[str, bytes]] = {
    "head": ("chat", b""),
    "half a head": ("chat", b"HTTP/1.1 200 OK\r\nConte"),
    "after 100": ("chat", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": ("chat", _PROMISED + b'{"choices'),
    "vectors": ("embed", _PROMISED),
    "chunk": ("chat", head(200, "Transfer-Encoding: chunked") + b"50\r\nhalf"),
    "stream": ("stream", EVENT_STREAM),
    "event": ("stream", EVENT_STREAM + token() + b'data: {"choices'),
    "between events": ("stream", EVENT_STREAM + token()),
}


def _breaks(sent: bytes, how: str) -> Serve:
    def serve(connection: socket.socket) -> None:
        if how == "reset":
            # Unread bytes make the kernel reset the connection, as it does when a process is killed.
            connection.recv(1)
        else:
            read_request(connection)
        connection.sendall(sent)
        reset(connection) if how == "reset" else connection.close()

    return serve


@BOTH
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("where", ["socket", "url"])
@pytest.mark.parametrize("phase", _PHASES)
def test_an_engine_that_is_killed_is_known_at_once(
    runtime_dir: Path, phase: str, where: str, how: str, *, is_async: bool
) -> None:
    """In every phase its connection breaks, long before any time-out; no phase waits for another."""
    operation, sent = _PHASES[phase]
    path = runtime_dir / "e.sock" if where == "socket" else None
    with listening(_breaks(sent, how), path) as endpoint:
        kinds = (EngineDied,) if path else (EndpointUnavailable,)
        with pytest.raises(kinds) as caught:
            ask(operation, endpoint, is_async=is_async)
    assert "reason" in caught.value.facts


@BOTH
def test_nobody_listens(runtime_dir: Path, *, is_async: bool) -> None:
    """A socket that is gone, a socket without a server, a port without a server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(runtime_dir / "left.sock"))
    for name in ("gone.sock", "left.sock"):
        endpoint = Endpoint("http://engine", "m", "llama.cpp", str(runtime_dir / name))
        with pytest.raises(EngineDied):
            ask("chat", endpoint, is_async=is_async)
    with pytest.raises(EndpointUnavailable):
        ask("stream", Endpoint(url, "m", "openai"), is_async=is_async)


@BOTH
def test_a_server_that_is_about_to_start_is_reached(
    monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    """Connecting to a URL is tried again, and not beyond the call's deadline."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = Endpoint(f"http://127.0.0.1:{taken.getsockname()[1]}", "m", "openai")
    paused: list[float] = []

    async def pause(_pool: object, seconds: float) -> None:
        paused.append(seconds)

    for client in (async_client, sync_client):
        monkeypatch.setattr(client._Pool, "pause", pause)
    with pytest.raises(EndpointUnavailable, match="does not answer"):
        ask("chat", endpoint, is_async=is_async)
    assert paused == [0.5]
    with pytest.raises((DeadlineExceeded, EndpointUnavailable)):
        ask("chat", endpoint, deadline=time.monotonic() + 0.3, is_async=is_async)
    assert paused[-1] < 0.5


@BOTH
def test_a_handshake_that_never_ends_is_bounded(*, is_async: bool) -> None:
    """A port that takes connections and says nothing, or nothing of TLS."""

    def silent(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with listening(silent) as plain:
        endpoint = Endpoint(plain.base_url.replace("http:", "https:"), "m", "openai")
        with pytest.raises(EngineTimeout, match=r"connecting took over 0\.1 s"):
            ask("chat", endpoint, Timeouts(connect_s=0.1), is_async=is_async)
    with listening(
        lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 9)
    ) as plain:
        endpoint = Endpoint(plain.base_url.replace("http:", "https:"), "m", "openai")
        with pytest.raises(EndpointUnavailable):
            ask("chat", endpoint, Timeouts(connect_s=0.5), is_async=is_async)


@BOTH
def test_an_engine_that_is_busy_is_not_taken_for_dead(runtime_dir: Path, *, is_async: bool) -> None:
    """A full queue of connections is waited for, and the wait has a bound."""
    path = runtime_dir / "busy.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting: list[socket.socket] = []
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(path))
        except BlockingIOError:
            pass
        endpoint = Endpoint("http://engine", "m", "llama.cpp", str(path))
        with pytest.raises(EngineTimeout, match=r"connecting took over 0\.2 s"):
            ask("chat", endpoint, Timeouts(connect_s=0.2), is_async=is_async)
        for sock in waiting:
            sock.close()


_NO_ANSWERS: dict[str, bytes] = {
    "a web page": head(200, "Content-Type: text/html") + b"<html><h1>Welcome</h1></html>",
    "bytes": head() + bytes(range(256)) * 4,
    "invalid UTF-8": head() + b'{"choices": [{"message": {"content": "\xff\xfe"}}]}',
    "nothing": head(200, "Content-Length: 0"),
    "no JSON": head() + b"OK",
    "a list": head() + b"[1, 2]",
    "nan": head() + b'{"choices": [{"message": {"content": NaN}}]}',
    "depth": head() + b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
    "infinity": head() + b'{"usage": {"prompt_tokens": 1e999}}',
    "digits": head() + b'{"usage": {"prompt_tokens": ' + b"9" * 5000 + b"}}",
    "half": head() + b'{"choices": [{"mess',
    "no content": head(204),
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "a bad length": head(200, "Content-Length: many") + b"x",
    "two lengths": head(200, "Content-Length: 1", "Content-Length: 2") + b"xx",
    "a bad status": b"HTTP/1.1 9999999 X\r\n\r\n",
    "a bad chunk": head(200, "Transfer-Encoding: chunked") + b"zz\r\n",
    "a long chunk": head(200, "Transfer-Encoding: chunked") + b"f" * 30 + b"\r\n",
    "a coding of transfer": head(200, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "a redirect": head(302, "Location: http://127.0.0.1:9/") + b"elsewhere",
}


@BOTH
@pytest.mark.parametrize("operation", ["chat", "stream", "embed"])
@pytest.mark.parametrize("answer", _NO_ANSWERS)
def test_what_is_no_answer_is_typed(answer: str, operation: str, *, is_async: bool) -> None:
    """A page, bytes, JSON that no program should take, another protocol: the endpoint's fault, in words."""
    with (
        listening(says(_NO_ANSWERS[answer])) as endpoint,
        pytest.raises((EndpointError, EndpointUnavailable)) as caught,
    ):
        ask(operation, endpoint, is_async=is_async)
    assert endpoint.base_url in str(caught.value)
    json.dumps(caught.value.to_wire())


def test_a_web_page_instead_of_a_stream_is_quoted_with_its_type() -> None:
    """The reader sees that a proxy or a login page answered."""
    page = head(200, "Content-Type: text/html") + b"<html>502 Bad Gateway</html>"
    with (
        listening(says(page)) as endpoint,
        pytest.raises(EndpointError, match=r"text/html.*<html>502 Bad Gateway"),
    ):
        ask("stream", endpoint)


@BOTH
def test_lines_may_end_with_cr_alone(*, is_async: bool) -> None:
    """The standard allows it; the pairs of CR and LF may be cut anywhere."""
    events = [token("a"), token("b"), b"data: [DONE]\n\n"]
    for end in (b"\r", b"\r\n"):
        raw = b"".join(events).replace(b"\n", end)
        for cut in (1, 7, len(raw)):
            parts = [raw[start : start + cut] for start in range(0, len(raw), cut)]
            with listening(says(EVENT_STREAM, *parts)) as endpoint:
                deltas = ask("stream", endpoint, is_async=is_async)
            assert [delta.content for delta in deltas] == ["a", "b"]


def test_an_address_that_is_none_is_the_configurations_fault() -> None:
    """Nothing is sent anywhere."""
    for url in (
        "http://[broken",
        "ftp://far",
        "far:8000",
        "http://",
        "http://a..b",
        "http://far:99999",
    ):
        with pytest.raises(ConfigError):
            ask("chat", Endpoint(url, "m", "openai"))


@pytest.mark.parametrize(
    "proxy",
    ["socks4://far:1", "http://far:port", "socks5://user:proxy-secret@far:1", "://", "http://[::1"],
)
def test_a_proxy_that_cannot_be_used_is_the_configurations_fault(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    """The error names the variables, and not the password in them."""
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ConfigError, match="proxy") as caught:
        ask("chat", Endpoint("http://far.invalid", "m", "openai"))
    assert "secret" not in str(caught.value)


def test_requests_through_a_proxy_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy gets its user and password, and repeats them in vain."""
    heads: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        heads.append(read_request(connection))
        answer = b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}'
        connection.sendall(head() + answer if len(heads) == 1 else heads[-1] + b"\r\n\r\n")

    with listening(serve) as proxy:
        url = proxy.base_url.replace("http://", "http://me:proxy-secret@")
        monkeypatch.setenv("http_proxy", url)
        far = Endpoint("http://far.invalid:80/base", "m", "openai")
        assert ask("chat", far).content == "ok"
        with pytest.raises(KeepwarmError) as caught:
            ask("chat", far)
    assert heads[0].startswith(b"POST http://far.invalid:80/base/v1/chat/completions")
    assert b"Proxy-Authorization: Basic bWU6cHJveHktc2VjcmV0" in heads[0]
    assert "bWU6cHJveHktc2Vjc" not in repr(caught.value)


def test_a_body_that_is_left_is_closed_and_not_read(runtime_dir: Path) -> None:
    """Closing a stream before its end reads nothing more, and the connection is gone."""
    closed: list[float] = []

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(EVENT_STREAM + token() * 3)
        assert connection.recv(1) == b""
        closed.append(time.monotonic())

    with listening(serve, runtime_dir / "e.sock") as endpoint:
        client = SyncTransport()
        with client.stream(endpoint, ASK) as stream:
            assert str(next(stream)) == "a"
    assert len(closed) == 1


def test_a_large_request_that_is_refused_early_gets_that_answer() -> None:
    """A server that answers before it has read everything, and closes, is understood."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head(413, "Content-Length: 9") + b"too large")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with listening(serve) as endpoint:
        client = SyncTransport()
        with pytest.raises(KeepwarmError, match="413: too large"):
            client.chat(endpoint, type(ASK)("x" * (4 << 20)))
        client.close()
