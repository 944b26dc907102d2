"""The clients against scripted engines and servers: retries, time-outs, keys, closing, forks."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from backends.base import Endpoint
from backends.openai import (
    AsyncTransport,
    ChatRequest,
    RemoteEngine,
    SyncTransport,
    Timeouts,
    exchange,
)
from backends.openai.connections.connecting import pool_settings
from backends.scripted import Script, ScriptedEngine
from budget.errors import (
    ConfigError,
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    EngineTimeout,
    LoadFailed,
    OutOfMemory,
    QueueFull,
)
from tests.engines.support import placement, running, until

ASK = ChatRequest("hello")
_ANSWER = b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}'


@contextmanager
def _server(serve: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A loopback server; `serve` gets each connection with its number, and is then done with it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                serve(connection, number)
            number += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head


def _reply(connection: socket.socket, status: int = 200, body: bytes = _ANSWER) -> None:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)


def test_a_stale_connection_is_retried_on_a_fresh_one() -> None:
    """A server that closes an idle connection as the next request arrives costs a retry only."""
    served: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        _read_request(connection)
        _reply(connection)
        served.append(number)
        if number == 0:
            _read_request(connection)  # the second request: taken, never answered

    with _server(serve) as url:
        client = SyncTransport()
        endpoint = Endpoint(url, "m", "openai")
        assert client.chat(endpoint, ASK).content == "ok"
        assert client.chat(endpoint, ASK).content == "ok"
        client.close()
    assert served == [0, 1]


def test_a_kept_connection_that_breaks_late_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that is ended in the middle of a prompt has read the request."""
    taken: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        _read_request(connection)
        _reply(connection)
        _read_request(connection)
        taken.append(number)

    with _server(serve) as url:
        client = SyncTransport()
        client.chat(Endpoint(url, "m", "openai"), ASK)
        monkeypatch.setattr(exchange, "STALE_S", -1.0)
        with pytest.raises(EndpointUnavailable):
            client.chat(Endpoint(url, "m", "openai"), ASK)
        client.close()
    assert taken == [0]


def test_a_fresh_connection_that_breaks_is_not_retried() -> None:
    """The request may have been read: asking twice is the caller's choice."""
    taken: list[int] = []

    def serve(connection: socket.socket, number: int) -> None:
        _read_request(connection)
        taken.append(number)

    with _server(serve) as url, pytest.raises(EndpointUnavailable):
        SyncTransport().chat(Endpoint(url, "m", "openai"), ASK)
    assert taken == [0]


def test_an_answer_that_breaks_off_is_not_retried() -> None:
    """Bytes of an answer were received."""

    def serve(connection: socket.socket, _number: int) -> None:
        _read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhalf")

    with _server(serve) as url, pytest.raises(EndpointUnavailable, match="broke off"):
        SyncTransport().chat(Endpoint(url, "m", "openai"), ASK)


def test_a_silent_endpoint_times_out_with_the_phase() -> None:
    """The error says which wait was too long."""
    release = threading.Event()

    def serve(connection: socket.socket, _number: int) -> None:
        _read_request(connection)
        release.wait(60)

    with _server(serve) as url:
        client = SyncTransport(Timeouts(first_token_s=0.05))
        with pytest.raises(EngineTimeout) as caught:
            client.stream(Endpoint(url, "m", "openai"), ASK)
        release.set()
    assert caught.value.facts["phase"] == "the first token"
    assert caught.value.facts["limit_s"] == 0.05


def test_nobody_at_a_url_is_endpoint_unavailable() -> None:
    """A refused connection, also in a remote engine's own health check."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    endpoint = Endpoint(url, "m", "vllm")
    with pytest.raises(EndpointUnavailable):
        SyncTransport().chat(endpoint, ASK)
    with pytest.raises(EndpointUnavailable):
        asyncio.run(RemoteEngine(endpoint, check=True).start(placement(), lambda _f: None))


def test_the_key_is_sent_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Read at the call, in the header; not in errors, representations, logs or on our wire."""
    caplog.set_level(logging.DEBUG)
    heads: list[bytes] = []

    def serve(connection: socket.socket, _number: int) -> None:
        heads.append(_read_request(connection))
        _reply(connection, 401, b'{"error": "Unauthorized: Bearer top-secret-key"}')

    with _server(serve) as url:
        endpoint = Endpoint(url, "m", "openai", api_key_env="FAR_KEY")
        client = SyncTransport()
        with pytest.raises(ConfigError, match="FAR_KEY"):
            client.chat(endpoint, ASK)
        monkeypatch.setenv("FAR_KEY", "top-secret-key")
        with pytest.raises(EndpointError) as caught:
            client.chat(endpoint, ASK)
    assert b"Authorization: Bearer top-secret-key" in heads[0]
    shown = [repr(caught.value), str(caught.value), str(caught.value.to_wire()), caplog.text]
    shown += [repr(endpoint), str(endpoint.to_wire()), repr(RemoteEngine(endpoint)), repr(client)]
    assert not [text for text in shown if "top-secret-key" in text]


def test_proxies_of_the_environment_do_not_touch_a_socket(
    monkeypatch: pytest.MonkeyPatch, runtime_dir: Path
) -> None:
    """A local engine is local, whatever HTTP_PROXY says."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")

    async def scenario() -> str:
        async with running(ScriptedEngine("m", runtime_dir)) as engine:
            client = AsyncTransport()
            answer = await client.chat(engine.endpoint, ASK)
            await client.aclose()
            return answer.content

    assert asyncio.run(scenario()) == "one two three"


def test_closing_a_stream_tells_the_engine(runtime_dir: Path) -> None:
    """The engine sees the connection close while it still waits for its next token."""

    async def scenario() -> tuple[int, bool]:
        script = Script(token_gate=asyncio.Event())
        async with running(ScriptedEngine("m", runtime_dir, script)) as engine:
            assert isinstance(engine, ScriptedEngine)
            stream = await AsyncTransport().stream(engine.endpoint, ASK)
            await anext(stream)
            before = engine.active_requests
            await stream.aclose()

            async def idle() -> bool:
                return engine.active_requests == 0

            return before, await until(idle)

    assert asyncio.run(scenario()) == (1, True)


def test_cancelling_a_waiting_caller_closes_its_connection(runtime_dir: Path) -> None:
    """A cancelled task leaves no generation behind."""

    async def scenario() -> bool:
        script = Script(token_gate=asyncio.Event())
        async with running(ScriptedEngine("m", runtime_dir, script)) as engine:
            assert isinstance(engine, ScriptedEngine)
            first = asyncio.Event()

            async def consume() -> None:
                async for _ in await AsyncTransport().stream(engine.endpoint, ASK):
                    first.set()

            caller = asyncio.ensure_future(consume())
            await first.wait()
            caller.cancel()

            async def idle() -> bool:
                return engine.active_requests == 0

            return await until(idle)

    assert asyncio.run(scenario())


def test_a_death_in_mid_stream_is_typed_and_watched(runtime_dir: Path) -> None:
    """The scripted engine dies as a real one does."""

    async def scenario() -> None:
        engine = ScriptedEngine("m", runtime_dir, Script(die_after=2, log_tail=("last words",)))
        async with running(engine):
            stream = await AsyncTransport().stream(engine.endpoint, ASK)
            pieces = [(await anext(stream)).content for _ in range(3)]
            assert pieces == ["", "one ", "two "]
            with pytest.raises(EngineDied):
                await anext(stream)
            assert (await engine.wait_death()).log_tail == ("last words",)
            assert not await engine.healthy()

    asyncio.run(scenario())


_FAILURES: list[tuple[Literal["fail", "out-of-memory"], type[LoadFailed]]] = [
    ("fail", LoadFailed),
    ("out-of-memory", OutOfMemory),
]


def test_scripted_loads_fail_as_scripted_and_wait_for_their_gate(runtime_dir: Path) -> None:
    """A test decides when and how a load ends, without a clock."""

    async def scenario() -> None:
        for load, kind in _FAILURES:
            gate, begun = asyncio.Event(), asyncio.Event()
            engine = ScriptedEngine("m", runtime_dir, Script(load=load, load_gate=gate))

            def progress(_fraction: float, begun: asyncio.Event = begun) -> None:
                begun.set()

            start = asyncio.ensure_future(engine.start(placement(), progress))
            await begun.wait()
            assert not start.done()
            gate.set()
            with pytest.raises(kind):
                await start

    asyncio.run(scenario())


def test_a_scripted_refusal_is_mapped_like_a_real_one(runtime_dir: Path) -> None:
    """Any status and body can be played."""

    async def scenario() -> None:
        script = Script(refuse=(429, {"error": {"message": "busy"}}))
        async with running(ScriptedEngine("m", runtime_dir, script)) as engine:
            with pytest.raises(QueueFull, match="busy"):
                await AsyncTransport().stream(engine.endpoint, ASK)

    asyncio.run(scenario())


def test_a_forked_child_does_not_share_its_parents_connections(runtime_dir: Path) -> None:
    """Parent and child each get their own answers after a fork."""

    async def scenario() -> tuple[str, str, str]:
        async with running(ScriptedEngine("m", runtime_dir)) as engine:
            client = SyncTransport()

            def fork_and_ask() -> tuple[str, str, str]:
                before = client.chat(engine.endpoint, ASK).content
                read, write = os.pipe()
                child = os.fork()
                if child == 0:
                    try:
                        os.write(write, client.chat(engine.endpoint, ASK).content.encode())
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
                return (
                    before,
                    os.read(read, 100).decode(),
                    client.chat(engine.endpoint, ASK).content,
                )

            return await asyncio.to_thread(fork_and_ask)

    assert set(asyncio.run(scenario())) == {"one two three"}


def test_the_pool_of_an_engine_that_is_gone_is_dropped(runtime_dir: Path) -> None:
    """A model that comes and goes leaves no connection pool behind for each of its starts."""

    async def main() -> None:
        sync, asynchronous = SyncTransport(), AsyncTransport()
        for _ in range(3):
            async with running(ScriptedEngine("scripted", runtime_dir)) as engine:
                await asyncio.to_thread(sync.chat, engine.endpoint, ChatRequest("hello", {}))
                await asynchronous.chat(engine.endpoint, ChatRequest("hello", {}))
        assert len(sync.pools.by_endpoint) == 1
        assert len(asynchronous.pools.all()) == 1
        await asynchronous.aclose()
        sync.close()

    asyncio.run(main())


def test_reaching_a_socket_reads_no_certificate_authorities(runtime_dir: Path) -> None:
    """A swap pays nothing for TLS: the transports of all sockets share one empty context."""
    first, second = (
        pool_settings(Endpoint("http://engine", "m", "llama.cpp", socket_path=str(path)))
        for path in (runtime_dir / "a.sock", runtime_dir / "b.sock")
    )
    assert first["ssl_context"] is second["ssl_context"]
    assert first["ssl_context"].cert_store_stats()["x509_ca"] == 0
    secure = pool_settings(Endpoint("https://example.org", "m", "openai"))
    assert secure["ssl_context"].verify_mode == ssl.CERT_REQUIRED
    assert secure["ssl_context"].cert_store_stats()["x509_ca"] > 0
