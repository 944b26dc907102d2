"""The data plane for threads: httpcore's blocking connections, and the flows over them made plain calls."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from backends.openai.exchange import Exchange, Headers, Route
from backends.openai.protocol import ChatRequest, Completion, Delta, Embeddings
from backends.openai.transport import Transport


@dataclass(eq=False, slots=True)
class _Held:
    """A connection, and the socket that was opened for it; closed once neither pool nor answer has it."""

    connection: httpcore.ConnectionInterface
    stream: BoundedStream | None = None

    def close(self) -> None:
        """Close it, however far it has come."""
        self.connection.close()
        if self.stream is not None:
            self.stream.close()

    def __del__(self) -> None:
        self.close()


@dataclass(eq=False, slots=True)
class _Answer:
    """A response that is read by the thread that asks for it."""

    status: int
    headers: Headers
    _pool: _Pool
    _response: httpcore.Response
    _held: _Held | None
    _chunks: Iterator[bytes] | None = None

    async def chunk(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = self._response.iter_stream()
        return next(self._chunks, None)

    async def close(self) -> None:
        held, self._held, pool = self._held, None, self._pool
        if held is None:
            return
        try:
            self._response.close()
        finally:
            full = len(pool.idle) >= MAX_IDLE_CONNECTIONS
            if pool.closed or full or not held.connection.is_idle():
                held.close()
            else:
                pool.idle.append(held)


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
        self.idle: deque[_Held] = deque()
        self.closed = False

    async def send(self, exchange: Exchange) -> _Answer:
        request = exchange.request()
        while True:
            try:
                held = self.idle.pop()
            except IndexError:
                held = _Held(self._factory.create_connection(request.url.origin))
                break
            if held.connection.is_idle() and not held.connection.has_expired():
                break
            held.close()
        try:
            response = held.connection.handle_request(request)
        except BaseException:
            self._remember(held, exchange)
            held.close()
            raise
        if exchange.bounds.opened is not None:
            self._remember(held, exchange)
        return _Answer(response.status, response.headers, self, response, held)

    @staticmethod
    def _remember(held: _Held, exchange: Exchange) -> None:
        if isinstance(exchange.bounds.opened, BoundedStream):
            held.stream = exchange.bounds.opened

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # a thread's primitive blocks

    def close(self) -> None:
        """Close the idle connections; running requests fail, and their threads close theirs."""
        self.closed = True
        # Threads that wait for an answer wake up, and find their connection closed.
        self._network.opened.shut_down()
        while self.idle:
            with contextlib.suppress(IndexError):  # another thread took it
                self.idle.pop().close()


class ThreadPools:
    """Connections from any thread. Safe after `fork()`."""

    def __init__(self) -> None:
        self.ended = False
        """Whether requests that begin from now on fail as if their connection broke."""
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
                if self.ended:
                    self.by_endpoint[key].close()
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

    def end(self) -> None:
        """As `close`, for good: a request that is about to begin fails as well."""
        self.pools.ended = True
        self.close()
