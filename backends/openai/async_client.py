"""The data plane for asyncio: the same calls as `sync_client`, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self
from weakref import WeakKeyDictionary

import httpx

from backends.base import Endpoint
from backends.openai.exchange import (
    CHAT_PATH,
    EMBED_PATH,
    Exchange,
    Route,
    StreamReader,
    Timeouts,
    dead_sockets,
    pool_key,
    transport_settings,
)
from backends.openai.resume import (
    RESUME_PATH,
    TEMPLATE_PATH,
    Progress,
    ResumeReader,
    resume_body,
    template_body,
    templated,
)
from backends.openai.wire import (
    ChatRequest,
    Completion,
    Delta,
    Embeddings,
    chat_body,
    decode,
    embed_body,
    parse_completion,
    parse_embeddings,
)

_Pools = dict[str, tuple[httpx.AsyncBaseTransport, Route]]


class AsyncDeltaStream(AsyncIterator[Delta]):
    """The deltas of one answer. Closing it before its end closes the connection: generation stops."""

    def __init__(
        self, exchange: Exchange, response: httpx.Response, reader: StreamReader | None = None
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._chunks = response.aiter_raw()
        self._reader = reader or exchange.reader()
        self._ready: deque[Delta] = deque()
        self._closed = False

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._closed or self._reader.done:
                await self.aclose()
                raise StopAsyncIteration
            await self._pull()
        return self._ready.popleft()

    async def _pull(self) -> None:
        try:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._reader.ended()
            else:
                self._ready.extend(self._reader.feed(chunk))
        except httpx.HTTPError as exc:
            await self.aclose()
            raise self._exchange.failed(exc, in_answer=True) from exc
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Give the connection back, or close it when the answer is unfinished. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(httpx.HTTPError):
            if self._reader.done:
                # The end of the body is in flight already; reading it lets the pool keep the socket.
                async for _ in self._chunks:
                    pass
        await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class AsyncTransport:
    """Requests from any event loop; one connection pool per loop and endpoint."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pools] = WeakKeyDictionary()
        self._closing: set[asyncio.Future[None]] = set()
        self._pid = os.getpid()

    async def chat(
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> Completion:
        """A whole answer; cancelling it closes the connection.

        Raises:
            KeepwarmError: the tree of `budget.errors`; `EngineDied` when a local engine is gone.
        """
        body = chat_body(endpoint, request, stream=False)
        return parse_completion(decode(await self._fetch(endpoint, CHAT_PATH, body, timeouts)))

    async def stream(
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> AsyncDeltaStream:
        """The answer's pieces; returns once the endpoint has begun to answer.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        limits = timeouts or self._timeouts
        body = chat_body(endpoint, request, stream=True)
        exchange, response = await self._open(
            endpoint, CHAT_PATH, body, limits, limits.first_byte_s
        )
        if response.status_code != 200:
            raise exchange.refusal(response.status_code, await self._read(exchange, response))
        exchange.answering()
        return AsyncDeltaStream(exchange, response)

    async def resume(
        self,
        endpoint: Endpoint,
        request: ChatRequest,
        tokens: Sequence[int] | None,
        progress: Progress,
    ) -> AsyncDeltaStream:
        """The rest of an interrupted answer, from all tokens so far; from their text when None.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        prompt: Sequence[int] | str
        if tokens is None:
            raw = await self._fetch(endpoint, TEMPLATE_PATH, template_body(request), None)
            prompt = templated(raw) + progress.text
        else:
            prompt = tokens
        limits = self._timeouts
        body = resume_body(endpoint, request, prompt, progress)
        exchange, response = await self._open(
            endpoint, RESUME_PATH, body, limits, limits.first_byte_s
        )
        if response.status_code != 200:
            raise exchange.refusal(response.status_code, await self._read(exchange, response))
        exchange.answering()
        reader = exchange.reader(partial(ResumeReader, before=progress))
        return AsyncDeltaStream(exchange, response, reader)

    async def embed(
        self, endpoint: Endpoint, texts: Sequence[str], *, timeouts: Timeouts | None = None
    ) -> Embeddings:
        """One vector per text.

        Raises:
            KeepwarmError: as `chat`.
        """
        body = embed_body(endpoint, texts)
        answer = decode(await self._fetch(endpoint, EMBED_PATH, body, timeouts))
        return parse_embeddings(answer, len(texts))

    async def aclose(self) -> None:
        """Close the running loop's idle connections. The transport can be used again."""
        pools = self._by_loop.pop(asyncio.get_running_loop(), {})
        for transport, _ in pools.values():
            await transport.aclose()

    async def forget(self, endpoint: Endpoint) -> None:
        """Close the running loop's pool of an endpoint that will not come back."""
        pools = self._by_loop.get(asyncio.get_running_loop(), {})
        known = pools.pop(pool_key(endpoint), None)
        if known is not None:
            await known[0].aclose()

    async def _fetch(
        self, endpoint: Endpoint, path: str, body: bytes, timeouts: Timeouts | None
    ) -> bytes:
        limits = timeouts or self._timeouts
        exchange, response = await self._open(endpoint, path, body, limits, limits.answer_s)
        raw = await self._read(exchange, response)
        if response.status_code != 200:
            raise exchange.refusal(response.status_code, raw)
        return raw

    async def _open(
        self, endpoint: Endpoint, path: str, body: bytes, limits: Timeouts, read_s: float | None
    ) -> tuple[Exchange, httpx.Response]:
        transport, route = self._pool(endpoint)
        exchange = Exchange(endpoint, route, path, body, limits)
        while True:
            try:
                request = exchange.request(read_s, is_async=True)
                return exchange, await transport.handle_async_request(request)
            except httpx.HTTPError as exc:
                if not exchange.may_retry(exc):
                    raise exchange.failed(exc) from exc

    @staticmethod
    async def _read(exchange: Exchange, response: httpx.Response) -> bytes:
        try:
            return await response.aread()
        except httpx.HTTPError as exc:
            raise exchange.failed(exc, in_answer=True) from exc
        finally:
            await response.aclose()

    def _pool(self, endpoint: Endpoint) -> tuple[httpx.AsyncBaseTransport, Route]:
        if self._pid != os.getpid():
            self._by_loop, self._pid = WeakKeyDictionary(), os.getpid()
        pools = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        key = pool_key(endpoint)
        if key not in pools:
            # A model that comes and goes gets a new socket every time; the old pools go here.
            for dead in dead_sockets(pools):
                closing = asyncio.ensure_future(pools.pop(dead)[0].aclose())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            pools[key] = (self._transport(endpoint), Route.to(endpoint))
        return pools[key]

    def _transport(self, endpoint: Endpoint) -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(**transport_settings(endpoint))
