"""The data plane for threads: httpcore's blocking connections, and the flows over them made plain calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import httpcore

from backends.base import Endpoint
from backends.flows import BlockingStream, run_blocking
from backends.forks import renew_after_fork
from backends.openai.bounds import Timeouts
from backends.openai.connecting import dead_sockets, pool_key, pool_settings
from backends.openai.exchange import Exchange, Route
from backends.openai.network import BoundedBackend
from backends.openai.transport import Transport
from backends.openai.wire import ChatRequest, Completion, Delta, Embeddings


class _Answer:
    """A response that is read by the thread that asks for it."""

    def __init__(self, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._chunks: Iterator[bytes] | None = None

    async def chunk(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = self._response.iter_stream()
        return next(self._chunks, None)

    async def close(self) -> None:
        self._response.close()


class _Pool:
    """The connections of all threads to one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.route = Route.to(endpoint)
        self._network = BoundedBackend()
        settings = pool_settings(endpoint)
        self._pool = httpcore.ConnectionPool(**settings, network_backend=self._network)

    async def send(self, exchange: Exchange) -> _Answer:
        return _Answer(self._pool.handle_request(exchange.request()))

    def close(self) -> None:
        # Threads that wait for an answer wake up, and find their connection closed.
        self._network.opened.shut_down()
        self._pool.close()


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
        self,
        endpoint: Endpoint,
        request: ChatRequest,
        *,
        timeouts: Timeouts | None = None,
        deadline: float | None = None,
    ) -> Completion:
        """A whole answer."""
        flow = self.flows.chat(endpoint, request, timeouts=timeouts, deadline=deadline)
        return run_blocking(flow)

    def stream(
        self,
        endpoint: Endpoint,
        request: ChatRequest,
        *,
        timeouts: Timeouts | None = None,
        deadline: float | None = None,
    ) -> DeltaStream:
        """The answer's pieces; returns once the endpoint has begun to answer."""
        flow = self.flows.stream(endpoint, request, timeouts=timeouts, deadline=deadline)
        return DeltaStream(run_blocking(flow))

    def embed(
        self,
        endpoint: Endpoint,
        texts: Sequence[str],
        *,
        timeouts: Timeouts | None = None,
        deadline: float | None = None,
    ) -> Embeddings:
        """One vector per text."""
        flow = self.flows.embed(endpoint, texts, timeouts=timeouts, deadline=deadline)
        return run_blocking(flow)

    def close(self) -> None:
        """Close every idle connection; running requests fail. The transport can be used again."""
        run_blocking(self.flows.aclose())
