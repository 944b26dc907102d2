"""The data plane for asyncio: httpcore's asynchronous connections, and the flows over them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from weakref import WeakKeyDictionary

import httpcore

from backends.base import Endpoint
from backends.machine.forks import renew_after_fork
from backends.machine.loop_end import at_loop_end
from backends.openai.connections.bounds import Timeouts
from backends.openai.connections.connecting import (
    MAX_IDLE_CONNECTIONS,
    dead_sockets,
    pool_settings,
)
from backends.openai.connections.network import AsyncBoundedBackend, AsyncBoundedStream
from backends.openai.exchange import Exchange, Route
from backends.openai.transport import Transport


class _Held:
    """A connection while a request has it, and the socket that was opened for it."""

    def __init__(self, connection: httpcore.AsyncConnectionInterface) -> None:
        self.connection = connection
        self.stream: AsyncBoundedStream | None = None

    async def close(self) -> None:
        """Close it, however far it has come; the socket goes before the first wait here."""
        try:
            if self.stream is not None:
                await self.stream.aclose()
        finally:
            await self.connection.aclose()


class _Answer:
    """A response that the event loop reads."""

    _held: _Held | None = None

    def __init__(self, pool: _Pool, held: _Held, response: httpcore.Response) -> None:
        self.status = response.status
        self.headers = response.headers
        self._pool = pool
        self._response = response
        self._chunks: AsyncIterator[bytes] | None = None
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._held = held

    async def chunk(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = self._response.aiter_stream()
        return await anext(self._chunks, None)

    async def close(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        try:
            await self._response.aclose()
        finally:
            await self._pool.take_back(held)

    def __del__(self) -> None:
        """Have the loop close an answer that its caller did not close, in the process that opened it."""
        if self._held is not None and self._pid == os.getpid():
            with contextlib.suppress(
                RuntimeError
            ):  # that loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(self._pool.close_soon, self._held)


class _Pool:
    """The connections of one event loop to one endpoint.

    httpcore's own pool only makes them, because it looks at all connections for each request, and loses
    connections whose request is cancelled at the wrong moment.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.route = Route.to(endpoint)
        self._network = AsyncBoundedBackend()
        settings = pool_settings(endpoint)
        self._factory = httpcore.AsyncConnectionPool(**settings, network_backend=self._network)
        self._idle: deque[_Held] = deque()
        self._busy: set[_Held] = set()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    async def send(self, exchange: Exchange) -> _Answer:
        request = exchange.request()
        held = await self._next_idle() or _Held(self._factory.create_connection(request.url.origin))
        self._busy.add(held)
        try:
            response = await held.connection.handle_async_request(request)
        except BaseException:
            self._remember(held, exchange)
            self._busy.discard(held)
            await held.close()
            raise
        if exchange.bounds.opened is not None:
            self._remember(held, exchange)
        return _Answer(self, held, response)

    @staticmethod
    def _remember(held: _Held, exchange: Exchange) -> None:
        if isinstance(exchange.bounds.opened, AsyncBoundedStream):
            held.stream = exchange.bounds.opened

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _next_idle(self) -> _Held | None:
        while self._idle:
            held = self._idle.pop()
            if held.connection.is_idle() and not held.connection.has_expired():
                return held
            await held.close()
        return None

    async def take_back(self, held: _Held) -> None:
        """Take a connection back after a request, and keep it if it can be used again."""
        self._busy.discard(held)
        full = len(self._idle) >= MAX_IDLE_CONNECTIONS
        if self._closed or full or not held.connection.is_idle():
            await held.close()
            return
        self._idle.append(held)

    def close_soon(self, held: _Held) -> None:
        """As `take_back` of an unfinished answer, without waiting for it."""
        self._busy.discard(held)
        task = asyncio.get_running_loop().create_task(held.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def shut_down(self) -> None:
        """Have what is in use fail; from any thread."""
        self._network.opened.shut_down()

    def connections(self) -> list[httpcore.AsyncConnectionInterface]:
        """The open connections."""
        return [held.connection for held in (*self._idle, *self._busy)]

    async def close(self) -> None:
        """Close all connections; running requests fail."""
        self._closed = True
        while self._idle or self._busy:
            held = self._idle.pop() if self._idle else self._busy.pop()
            await held.close()


class _LoopPools:
    """The connections of one event loop, by endpoint; closed by it when it ends."""

    def __init__(self, ended: Callable[[], None]) -> None:
        self.pools: dict[str, _Pool] = {}
        self._ended = ended
        self._closing: set[asyncio.Task[None]] = set()
        self._end = at_loop_end(self._close)

    def to(self, endpoint: Endpoint) -> _Pool:
        key = endpoint.socket_path or endpoint.key_file or endpoint.base_url
        if key not in self.pools:
            # A model that comes and goes gets a new socket every time; the old pools go here.
            for dead in dead_sockets(self.pools):
                self._later(self.pools.pop(dead).close())
            self.pools[key] = _Pool(endpoint)
        return self.pools[key]

    def _later(self, closing: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def shut_down(self) -> None:
        """Have what is in use fail; from any thread."""
        for pool in list(self.pools.values()):
            pool.shut_down()

    def close_soon(self) -> None:
        """As `close`, without waiting for it; called in the loop."""
        self._later(self.close())

    async def _close(self) -> None:
        while self.pools:
            await self.pools.popitem()[1].close()
        self._ended()

    async def close(self) -> None:
        """Close the idle connections. Idempotent."""
        await self._end.aclose()


class LoopPools:
    """Connections by event loop, closed with their loop. Safe after `fork()`, and from any thread."""

    def __init__(self) -> None:
        self.ended = False
        """Whether requests that begin from now on fail as if their connection broke."""
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPools] = (
            WeakKeyDictionary()
        )
        self._lock = threading.Lock()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the connections are the parent's; no thread that held the lock is here."""
        self._by_loop, self._lock = WeakKeyDictionary(), threading.Lock()

    def to(self, endpoint: Endpoint) -> _Pool:
        """The running loop's connections to an endpoint, made when they are first asked for."""
        loop = asyncio.get_running_loop()
        pools = self._by_loop.get(loop)
        if pools is None:
            pools = _LoopPools(partial(self._forget, loop))
            with self._lock:
                self._forget_closed()
                self._by_loop[loop] = pools
        pool = pools.to(endpoint)
        if self.ended:
            pool.shut_down()
        return pool

    def _forget(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            self._by_loop.pop(loop, None)

    def all(self) -> list[_Pool]:
        """The pools of connections of all loops."""
        with self._lock:
            return [pool for pools in self._by_loop.values() for pool in pools.pools.values()]

    def _forget_closed(self) -> None:
        # Connections hold their loop, so a weak reference to it alone would never be cleared.
        for loop in [loop for loop in self._by_loop if loop.is_closed()]:
            del self._by_loop[loop]

    async def close(self) -> None:
        """Close the running loop's idle connections."""
        with self._lock:
            pools = self._by_loop.pop(asyncio.get_running_loop(), None)
        if pools is not None:
            await pools.close()

    def close_everywhere(self) -> None:
        """End what runs, and have every loop close its connections; from any thread, waiting for none."""
        with self._lock:
            found = list(self._by_loop.items())
            self._by_loop.clear()
        for loop, pools in found:
            pools.shut_down()
            with contextlib.suppress(RuntimeError):  # that loop is closed
                loop.call_soon_threadsafe(pools.close_soon)


class AsyncTransport(Transport):
    """Requests from any event loop; one connection pool per loop and endpoint."""

    pools: LoopPools

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        super().__init__(LoopPools(), timeouts)

    def close(self) -> None:
        """End what runs on all loops, from any thread; each closes its connections when it next runs."""
        self.pools.close_everywhere()

    def end(self) -> None:
        """As `close`, for good: a request that is about to begin fails as well."""
        self.pools.ended = True
        self.close()
