"""The data plane for threads: httpcore's blocking connections, and the flows over them made plain calls."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Unpack

import httpcore

from backends.base import Endpoint
from backends.flows import BlockingStream, run_blocking
from backends.machine.forks import renew_after_fork
from backends.openai.connections.bounds import Limits, Timeouts
from backends.openai.connections.connecting import (
    MAX_IDLE_CONNECTIONS,
    dead_sockets,
    pool_settings,
)
from backends.openai.connections.network import BoundedBackend, BoundedStream
from backends.openai.exchange import Exchange, Route
from backends.openai.protocol import ChatRequest, Completion, Delta, Embeddings
from backends.openai.transport import Transport


class _Held:
    """A connection while a request has it, and the socket that was opened for it."""

    def __init__(self, connection: httpcore.ConnectionInterface) -> None:
        self.connection = connection
        self.stream: BoundedStream | None = None

    def close(self) -> None:
        """Close it, however far it has come."""
        self.connection.close()
        if self.stream is not None:
            self.stream.close()


class _Answer:
    """A response that is read by the thread that asks for it."""

    _held: _Held | None = None

    def __init__(self, pool: _Pool, held: _Held, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers = response.headers
        self._pool = pool
        self._response = response
        self._chunks: Iterator[bytes] | None = None
        self._held = held

    async def chunk(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = self._response.iter_stream()
        return next(self._chunks, None)

    async def close(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        try:
            self._response.close()
        finally:
            self._pool.take_back(held)

    def __del__(self) -> None:
        """Close an answer that its caller did not close."""
        if self._held is not None:
            run_blocking(self.close())


class _Pool:
    """The connections of all threads to one endpoint.

    The library's own pool makes them and no more: it looks at all of them for each request, and loses
    those whose request is interrupted at the wrong moment.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.route = Route.to(endpoint)
        self._network = BoundedBackend()
        settings = pool_settings(endpoint)
        self._factory = httpcore.ConnectionPool(**settings, network_backend=self._network)
        self._idle: deque[_Held] = deque()
        self._busy: set[_Held] = set()
        self._closed = False

    async def send(self, exchange: Exchange) -> _Answer:
        request = exchange.request()
        held = self._next_idle() or _Held(self._factory.create_connection(request.url.origin))
        self._busy.add(held)
        try:
            response = held.connection.handle_request(request)
        except BaseException:
            self._remember(held, exchange)
            self._busy.discard(held)
            held.close()
            raise
        if exchange.bounds.opened is not None:
            self._remember(held, exchange)
        return _Answer(self, held, response)

    @staticmethod
    def _remember(held: _Held, exchange: Exchange) -> None:
        if isinstance(exchange.bounds.opened, BoundedStream):
            held.stream = exchange.bounds.opened

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # a thread's primitive blocks

    def _next_idle(self) -> _Held | None:
        while self._idle:
            try:
                held = self._idle.pop()
            except IndexError:  # another thread took it
                return None
            if held.connection.is_idle() and not held.connection.has_expired():
                return held
            held.close()
        return None

    def take_back(self, held: _Held) -> None:
        """A request is through with a connection: keep it where it can be used again."""
        self._busy.discard(held)
        full = len(self._idle) >= MAX_IDLE_CONNECTIONS
        if self._closed or full or not held.connection.is_idle():
            held.close()
            return
        self._idle.append(held)

    def close(self) -> None:
        """Close the idle connections; running requests fail, and their threads close theirs."""
        self._closed = True
        # Threads that wait for an answer wake up, and find their connection closed.
        self._network.opened.shut_down()
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took it
                self._idle.pop().close()


class ThreadPools:
    """Connections from any thread. Safe after `fork()`."""

    def __init__(self) -> None:
        self.by_endpoint: dict[str, _Pool] = {}
        self._lock = threading.Lock()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the connections are the parent's; no thread that held the lock is here."""
        self._lock, self.by_endpoint = threading.Lock(), {}

    def to(self, endpoint: Endpoint) -> _Pool:
        """The connections to an endpoint, made when they are first asked for."""
        key = endpoint.socket_path or endpoint.key_file or endpoint.base_url
        known = self.by_endpoint.get(key)
        if known is not None:
            return known
        with self._lock:
            # A model that comes and goes gets a new socket every time; the old pools go here.
            for dead in dead_sockets(self.by_endpoint):
                self.by_endpoint.pop(dead).close()
            if key not in self.by_endpoint:
                self.by_endpoint[key] = _Pool(endpoint)
            return self.by_endpoint[key]

    async def close(self) -> None:
        """Close every idle connection; running requests fail."""
        with self._lock:
            pools, self.by_endpoint = self.by_endpoint, {}
        for pool in pools.values():
            pool.close()


class DeltaStream(BlockingStream[Delta]):
    """The deltas of one answer. Closing it before its end closes the connection: generation stops."""


class SyncTransport:
    """Requests from any thread; one connection pool per endpoint. Safe after `fork()`.

    Each call is that of its `flows`, and raises what that raises.
    """

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self.pools = ThreadPools()
        self.flows = Transport(self.pools, timeouts)

    def chat(
        self, endpoint: Endpoint, request: ChatRequest, **limits: Unpack[Limits]
    ) -> Completion:
        """A whole answer."""
        return run_blocking(self.flows.chat(endpoint, request, **limits))

    def stream(
        self, endpoint: Endpoint, request: ChatRequest, **limits: Unpack[Limits]
    ) -> DeltaStream:
        """The answer's pieces; returns once the endpoint has begun to answer."""
        return DeltaStream(run_blocking(self.flows.stream(endpoint, request, **limits)))

    def embed(
        self, endpoint: Endpoint, texts: Sequence[str], **limits: Unpack[Limits]
    ) -> Embeddings:
        """One vector per text."""
        return run_blocking(self.flows.embed(endpoint, texts, **limits))

    def close(self) -> None:
        """Close every idle connection; running requests fail. The transport can be used again."""
        run_blocking(self.flows.aclose())
