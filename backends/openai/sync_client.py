"""The data plane for threads: httpx's blocking connections, and the flows over them made plain calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import httpx

from backends.base import Endpoint
from backends.flows import BlockingStream, run_blocking
from backends.openai.exchange import (
    Exchange,
    Route,
    Timeouts,
    dead_sockets,
    pool_key,
    transport_settings,
)
from backends.openai.transport import Transport
from backends.openai.wire import ChatRequest, Completion, Delta, Embeddings


class _Answer:
    """A response that is read by the thread that asks for it."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self._response = response
        self._chunks: Iterator[bytes] | None = None

    async def read(self) -> bytes:
        return self._response.read()

    async def chunk(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = self._response.iter_raw()
        return next(self._chunks, None)

    async def close(self) -> None:
        self._response.close()


class _Pool:
    """The connections of all threads to one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.route = Route.to(endpoint)
        self._transport = httpx.HTTPTransport(**transport_settings(endpoint))

    async def send(self, exchange: Exchange, read_s: float | None) -> _Answer:
        request = exchange.request(read_s, is_async=False)
        return _Answer(self._transport.handle_request(request))

    def close(self) -> None:
        self._transport.close()


class ThreadPools:
    """Connections from any thread. Safe after `fork()`."""

    def __init__(self) -> None:
        self.by_endpoint: dict[str, _Pool] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def to(self, endpoint: Endpoint) -> _Pool:
        """The connections to an endpoint, made when they are first asked for."""
        if self._pid != os.getpid():
            # A forked child shares its parent's sockets and, perhaps, a lock held by a thread that
            # does not exist here: it starts with neither.
            self._lock, self.by_endpoint, self._pid = threading.Lock(), {}, os.getpid()
        key = pool_key(endpoint)
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
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> Completion:
        """A whole answer."""
        return run_blocking(self.flows.chat(endpoint, request, timeouts=timeouts))

    def stream(
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> DeltaStream:
        """The answer's pieces; returns once the endpoint has begun to answer."""
        return DeltaStream(run_blocking(self.flows.stream(endpoint, request, timeouts=timeouts)))

    def embed(
        self, endpoint: Endpoint, texts: Sequence[str], *, timeouts: Timeouts | None = None
    ) -> Embeddings:
        """One vector per text."""
        return run_blocking(self.flows.embed(endpoint, texts, timeouts=timeouts))

    def close(self) -> None:
        """Close every idle connection; running requests fail. The transport can be used again."""
        run_blocking(self.flows.aclose())
