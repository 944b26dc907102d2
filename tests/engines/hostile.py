"""A loopback server that answers as a test says, byte by byte, and ways to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backends.base import Capabilities, Endpoint
from backends.kinds import Backend
from backends.openai import AsyncTransport, ChatRequest, SyncTransport, Timeouts

ASK = ChatRequest("hello")
EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
MOST_BYTES = 256 << 20
"""What a server sends at most, whatever its client does."""

Serve = Callable[[socket.socket], None]


def head(status: int = 200, *fields: str) -> bytes:
    """The head of an answer whose body ends with the connection."""
    return "\r\n".join([f"HTTP/1.1 {status} X", *fields, "", ""]).encode()


def token(text: str = "a") -> bytes:
    """An event with one token."""
    return b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode()


def read_request(connection: socket.socket) -> bytes:
    """The head of a request, read with its body; empty when the client has gone."""
    return read_whole(connection)[0]


def read_whole(connection: socket.socket) -> tuple[bytes, bytes]:
    """The head and the body of a request; empty when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b"", b""
        data += part
    start, _, body = data.partition(b"\r\n\r\n")
    _, found, rest = start.lower().partition(b"content-length: ")
    length = int(rest.split(b"\r\n")[0]) if found else 0
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return b"", b""
        body += part
    return start, body


def says(*parts: bytes, then_wait: bool = False) -> Serve:
    """Answers one request with these bytes and closes, or waits until the client does."""

    def serve(connection: socket.socket) -> None:
        if read_request(connection):
            for part in parts:
                connection.sendall(part)
            if then_wait:
                connection.recv(1)

    return serve


def floods(start: bytes, again: bytes) -> Serve:
    """Sends `again` until the client has had enough."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(start)
        block = again * max(1, 65536 // len(again))
        for _ in range(MOST_BYTES // len(block)):
            connection.sendall(block)

    return serve


def trickles(start: bytes, again: bytes, pause_s: float = 0.01) -> Serve:
    """Sends `again` from time to time until the client has gone."""

    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(start)
        connection.settimeout(pause_s)
        for _ in range(3000):
            connection.sendall(again)
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    return serve


def reset(connection: socket.socket) -> None:
    """Break a connection as a killed process with unread bytes does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def listening(serve: Serve, path: Path | None = None, **fields: Any) -> Iterator[Endpoint]:
    """A server on loopback, or on a Unix socket; a thread serves each connection, once."""
    if path is None:
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        url = "http://engine"
    threads: list[threading.Thread] = []
    open_now: set[socket.socket] = set()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            open_now.add(connection)
            serve(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=one, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        socket_path = None if path is None else str(path)
        backend: Backend = "openai" if path is None else "llama.cpp"
        can = Capabilities(embeddings=True)
        yield Endpoint(url, "m", backend, socket_path, capabilities=can, **fields)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(60)
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


def ask(
    operation: str,
    endpoint: Endpoint,
    timeouts: Timeouts | None = None,
    *,
    deadline: float | None = None,
    is_async: bool = False,
    request: ChatRequest = ASK,
) -> Any:
    """One `chat`, `stream` or `embed`, whole, from a thread or in an event loop of its own."""
    limits: Any = {"timeouts": timeouts, "deadline": deadline}
    if not is_async:
        client = SyncTransport()
        try:
            if operation == "embed":
                return client.embed(endpoint, ["x"], **limits)
            if operation == "chat":
                return client.chat(endpoint, request, **limits)
            with client.stream(endpoint, request, **limits) as stream:
                return list(stream)
        finally:
            client.close()

    async def main() -> Any:
        client = AsyncTransport()
        if operation == "embed":
            return await client.embed(endpoint, ["x"], **limits)
        if operation == "chat":
            return await client.chat(endpoint, request, **limits)
        async with await client.stream(endpoint, request, **limits) as stream:
            return [delta async for delta in stream]

    return asyncio.run(main())
