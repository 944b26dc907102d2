"""The data plane for asyncio: httpx's asynchronous connections, and the flows over them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from weakref import WeakKeyDictionary

import httpx

from backends.base import Endpoint
from backends.openai.exchange import (
    Exchange,
    Route,
    Timeouts,
    dead_sockets,
    pool_key,
    transport_settings,
)
from backends.openai.transport import Transport


class _Answer:
    """A response that the event loop reads."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self._response = response
        self._chunks: AsyncIterator[bytes] | None = None

    async def read(self) -> bytes:
        return await self._response.aread()

    async def chunk(self) -> bytes | None:
        if self._chunks is None:
            self._chunks = self._response.aiter_raw()
        return await anext(self._chunks, None)

    async def close(self) -> None:
        await self._response.aclose()


class _Pool:
    """The connections of one event loop to one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.route = Route.to(endpoint)
        self._transport = httpx.AsyncHTTPTransport(**transport_settings(endpoint))

    async def send(self, exchange: Exchange, read_s: float | None) -> _Answer:
        request = exchange.request(read_s, is_async=True)
        return _Answer(await self._transport.handle_async_request(request))

    async def close(self) -> None:
        await self._transport.aclose()


class LoopPools:
    """Connections by event loop. Safe after `fork()`."""

    def __init__(self) -> None:
        self.by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Pool]] = (
            WeakKeyDictionary()
        )
        self._closing: set[asyncio.Future[None]] = set()
        self._pid = os.getpid()

    def to(self, endpoint: Endpoint) -> _Pool:
        """The running loop's connections to an endpoint, made when they are first asked for."""
        if self._pid != os.getpid():
            self.by_loop, self._pid = WeakKeyDictionary(), os.getpid()
        pools = self.by_loop.setdefault(asyncio.get_running_loop(), {})
        key = pool_key(endpoint)
        if key not in pools:
            # A model that comes and goes gets a new socket every time; the old pools go here.
            for dead in dead_sockets(pools):
                closing = asyncio.ensure_future(pools.pop(dead).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            pools[key] = _Pool(endpoint)
        return pools[key]

    async def close(self) -> None:
        """Close the running loop's idle connections."""
        for pool in self.by_loop.pop(asyncio.get_running_loop(), {}).values():
            await pool.close()


class AsyncTransport(Transport):
    """Requests from any event loop; one connection pool per loop and endpoint."""

    pools: LoopPools

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        super().__init__(LoopPools(), timeouts)
