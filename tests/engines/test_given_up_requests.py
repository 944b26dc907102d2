"""Requests that are given up at any moment, in any way, leave no connection, task or thread behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from backends.base import Endpoint
from backends.openai import AsyncTransport, SyncTransport
from backends.openai.connections.network import BoundedBackend, BoundedStream
from budget.errors import KeepwarmError
from tests.engines.hostile import ASK, listening, read_request, read_whole, token

_WHOLE = b'{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}'
_VECTORS = b'{"data":[{"index":0,"embedding":[1.0]}]}'
_EVENTS = token("o") + token("k") + b"data: [DONE]\n\n"


def _serve(connection: socket.socket) -> None:
    """Answers every request of a connection, in several parts."""
    while (request := read_whole(connection))[0]:
        body = _VECTORS if b"embeddings" in request[0] else _WHOLE
        parts = [body[:9], body[9:]]
        if b'"stream":true' in request[1]:
            parts = [_EVENTS[:7], _EVENTS[7:60], _EVENTS[60:]]
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
        for part in (
            b"HTTP/1.1 200 OK\r\nTransfer-",
            b"Encoding: chunked\r\n\r\n",
            *chunks,
            b"0\r\n\r\n",
        ):
            connection.sendall(part)


def _sockets(path: str) -> int:
    """This process's client sockets to a path."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.is_socket():
                with socket.socket(fileno=os.dup(int(entry.name))) as sock:
                    found += sock.family == socket.AF_UNIX and sock.getpeername() == path
    return found


async def _call(client: AsyncTransport, endpoint: Endpoint, operation: str) -> str:
    if operation == "chat":
        return (await client.chat(endpoint, ASK)).content
    if operation == "embed":
        return str((await client.embed(endpoint, ["x"])).vectors)
    stream = await client.stream(endpoint, ASK)
    try:
        if operation == "stream, left":
            return str(await anext(stream))
        return "".join([str(delta) async for delta in stream])
    finally:
        await stream.aclose()


class Cancels(Awaitable[Any]):
    """Runs a coroutine in its task and cancels that at its n-th wait, and at the waits after it."""

    def __init__(self, inner: Coroutine[Any, Any, Any], at: int, times: int) -> None:
        self._inner = inner
        self._at = at
        self._times = times
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        """Each thing that the coroutine yields is one wait."""
        steps = self._inner.__await__()
        thrown: BaseException | None = None
        while True:
            try:
                waited = steps.send(None) if thrown is None else steps.throw(thrown)
            except StopIteration as end:
                return end.value
            if self._at <= self.waits < self._at + self._times:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)
            self.waits += 1
            thrown = None
            try:
                yield waited
            except BaseException as exc:
                thrown = exc


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("operation", ["chat", "embed", "stream", "stream, left"])
def test_cancelled_at_any_wait_a_request_leaves_nothing_open(
    runtime_dir: Path, operation: str, times: int
) -> None:
    """On a new connection and on a kept one; also when closing is cancelled again."""

    async def main(endpoint: Endpoint, *, kept: bool) -> int:
        cut, at = 0, 0
        assert endpoint.socket_path is not None
        while True:
            client = AsyncTransport()
            if kept:
                await client.chat(endpoint, ASK)
            calling = Cancels(_call(client, endpoint, operation), at, times)

            async def call(calling: Cancels = calling) -> Any:
                return await calling

            task = asyncio.ensure_future(call())
            await asyncio.wait({task})
            cut += task.cancelled()
            if not task.cancelled():
                assert task.exception() is None
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*others)
            connections = [c for pool in client.pools.all() for c in pool.connections()]
            assert all(c.is_idle() for c in connections), (at, connections, task)
            assert _sockets(endpoint.socket_path) == len(connections)
            assert (await client.chat(endpoint, ASK)).content == "ok"
            await client.aclose()
            await asyncio.sleep(0)
            assert _sockets(endpoint.socket_path) == 0
            if calling.waits <= at:
                return cut
            at += 1

    with listening(_serve, runtime_dir / "e.sock") as endpoint:
        for kept in (False, True):
            assert asyncio.run(main(endpoint, kept=kept)) >= 3


class Stop(BaseException):
    """What a signal's handler raises."""


def _call_blocking(client: SyncTransport, endpoint: Endpoint, operation: str) -> object:
    if operation == "chat":
        return client.chat(endpoint, ASK)
    if operation == "embed":
        return client.embed(endpoint, ["x"])
    with client.stream(endpoint, ASK) as stream:
        return list(stream)


@pytest.mark.parametrize("operation", ["chat", "embed", "stream"])
def test_interrupted_anywhere_a_thread_leaves_nothing_open(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Ctrl-C before, in and after each step on the network."""
    left = [0]

    def counted(step: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            result = step(*arguments, **named) if after else None
            left[0] -= 1
            if left[0] == 0:
                raise Stop
            return result if after else step(*arguments, **named)

        return run

    with listening(_serve, runtime_dir / "e.sock") as endpoint:
        assert endpoint.socket_path is not None
        for after in (False, True):
            stops = 0
            while True:
                client = SyncTransport()
                with monkeypatch.context() as patch:
                    for name in ("read", "write"):
                        step = getattr(BoundedStream, name)
                        patch.setattr(BoundedStream, name, counted(step, after=after))
                    connect = BoundedBackend.connect_unix_socket
                    patch.setattr(
                        BoundedBackend, "connect_unix_socket", counted(connect, after=False)
                    )
                    left[0] = stops + 1
                    try:
                        _call_blocking(client, endpoint, operation)
                        break
                    except Stop:
                        stops += 1
                gc.collect()
                assert _sockets(endpoint.socket_path) == 0
                assert client.chat(endpoint, ASK).content == "ok"
                client.close()
            client.close()
            assert stops >= 4
            assert _sockets(endpoint.socket_path) == 0


@pytest.mark.parametrize("pieces", [0, 1])
def test_a_stream_that_nobody_closed_ends_with_its_last_reference(
    runtime_dir: Path, pieces: int
) -> None:
    """On a thread at once, on an event loop in its next turns."""

    def waits(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + token())
        assert connection.recv(1) == b""

    async def drop(endpoint: Endpoint) -> int:
        client = AsyncTransport()
        stream = await client.stream(endpoint, ASK)
        for _ in range(pieces):
            await anext(stream)
        del stream
        gc.collect()
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)
        await asyncio.sleep(0)
        return _sockets(str(endpoint.socket_path))

    with listening(waits, runtime_dir / "e.sock") as endpoint:
        sync = SyncTransport()
        stream = sync.stream(endpoint, ASK)
        for _ in range(pieces):
            next(stream)
        del stream
        gc.collect()
        assert _sockets(str(endpoint.socket_path)) == 0
        assert asyncio.run(drop(endpoint)) == 0


def test_no_request_leaves_a_thread(runtime_dir: Path) -> None:
    """Neither client has any of its own."""
    before = set(threading.enumerate())
    with listening(_serve, runtime_dir / "e.sock") as endpoint:
        client = SyncTransport()
        client.chat(endpoint, ASK)
        asyncio.run(_call(AsyncTransport(), endpoint, "stream"))
        client.close()
    assert set(threading.enumerate()) <= before


def _never(connection: socket.socket) -> None:
    """Reads, and answers nothing until its client has gone."""
    while read_whole(connection)[0]:
        pass


def test_a_request_that_begins_beside_the_end_of_its_transport_fails(runtime_dir: Path) -> None:
    """No thread would end it later; from threads and from event loops, before or after a connection."""

    async def ask(client: AsyncTransport, endpoint: Endpoint) -> None:
        await client.chat(endpoint, ASK)

    with listening(_never, runtime_dir / "e.sock") as endpoint:
        threads, loops = SyncTransport(), AsyncTransport()
        threads.end()
        loops.end()
        with pytest.raises(KeepwarmError):
            threads.chat(endpoint, ASK)
        with pytest.raises(KeepwarmError):
            asyncio.run(ask(loops, endpoint))
        pooled = SyncTransport()
        pool = pooled.pools.to(endpoint)
        pooled.end()
        assert pooled.pools.to(endpoint) is not pool
        pooled.pools.by_endpoint[str(endpoint.socket_path)] = (
            pool  # as a thread that had it already
        )
        with pytest.raises(KeepwarmError):
            pooled.chat(endpoint, ASK)
