"""The data plane: chat, stream and embed as flows over the connections of a thread or an event loop."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import httpx

from backends.base import Endpoint
from backends.flows import Stream
from backends.openai.exchange import (
    CHAT_PATH,
    EMBED_PATH,
    Exchange,
    ReaderKind,
    Route,
    StreamReader,
    Timeouts,
)
from backends.openai.resume import (
    RESUME_PATH,
    TEMPLATE_PATH,
    Progress,
    ResumeReader,
    resume_body,
    template_body,
    templated,
    tokens_to_repeat,
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


class Answer(Protocol):
    """The response to one request. What fails here raises `httpx.HTTPError`."""

    status: int

    async def read(self) -> bytes:
        """The whole body."""
        ...

    async def chunk(self) -> bytes | None:
        """The next bytes of the body; None at its end."""
        ...

    async def close(self) -> None:
        """Give the connection back, or close it when the body is unfinished. Idempotent."""
        ...


class Pool(Protocol):
    """The connections to one endpoint."""

    route: Route

    async def send(self, exchange: Exchange, read_s: float | None) -> Answer:
        """One attempt; returns when the headers of the response are here.

        Raises:
            httpx.HTTPError: it failed.
        """
        ...


class Pools(Protocol):
    """The connections of a thread or an event loop, by endpoint."""

    def to(self, endpoint: Endpoint) -> Pool:
        """The connections to an endpoint, made when they are first asked for."""
        ...

    async def close(self) -> None:
        """Close every idle connection."""
        ...


class AsyncDeltaStream(Stream[Delta]):
    """The deltas of one answer. Closing it before its end closes the connection: generation stops."""

    def __init__(self, exchange: Exchange, answer: Answer, reader: StreamReader) -> None:
        self._exchange = exchange
        self._answer = answer
        self._reader = reader
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
            chunk = await self._answer.chunk()
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
            # The end of the body is in flight already; reading it lets the pool keep the socket.
            while self._reader.done and await self._answer.chunk() is not None:
                pass
        await self._answer.close()


class Transport:
    """Requests over the connections of a thread or an event loop."""

    def __init__(self, pools: Pools, timeouts: Timeouts | None = None) -> None:
        self.pools = pools
        self._timeouts = timeouts or Timeouts()

    async def chat(
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> Completion:
        """A whole answer; interrupting or cancelling it closes the connection.

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
        body = chat_body(endpoint, request, stream=True)
        return await self._stream(endpoint, CHAT_PATH, body, timeouts, StreamReader)

    async def resume(
        self,
        endpoint: Endpoint,
        request: ChatRequest,
        tokens: Sequence[int] | None,
        progress: Progress,
    ) -> AsyncDeltaStream:
        """The rest of an interrupted answer, from all tokens so far; from their text when None.

        The last token may be missing: it is said again, or the text serves where it could differ.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        prompt: Sequence[int] | str
        repeat = tokens_to_repeat(request, tokens, progress)
        if tokens is None or repeat is None:
            raw = await self._fetch(endpoint, TEMPLATE_PATH, template_body(request), None)
            prompt = templated(raw) + progress.text
        else:
            prompt = tokens
        body = resume_body(endpoint, request, prompt, progress, repeat or 0)
        reader = partial(ResumeReader, before=progress, repeat=repeat or 0)
        return await self._stream(endpoint, RESUME_PATH, body, None, reader)

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
        """Close this thread's or the running loop's idle connections; it can be used again."""
        await self.pools.close()

    async def _fetch(
        self, endpoint: Endpoint, path: str, body: bytes, timeouts: Timeouts | None
    ) -> bytes:
        limits = timeouts or self._timeouts
        exchange, answer = await self._open(endpoint, path, body, limits, limits.answer_s)
        raw = await self._read(exchange, answer)
        if answer.status != 200:
            raise exchange.refusal(answer.status, raw)
        return raw

    async def _stream(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        timeouts: Timeouts | None,
        reader: ReaderKind,
    ) -> AsyncDeltaStream:
        limits = timeouts or self._timeouts
        exchange, answer = await self._open(endpoint, path, body, limits, limits.first_byte_s)
        if answer.status != 200:
            raise exchange.refusal(answer.status, await self._read(exchange, answer))
        exchange.answering()
        return AsyncDeltaStream(exchange, answer, exchange.reader(reader))

    async def _open(
        self, endpoint: Endpoint, path: str, body: bytes, limits: Timeouts, read_s: float | None
    ) -> tuple[Exchange, Answer]:
        pool = self.pools.to(endpoint)
        exchange = Exchange(endpoint, pool.route, path, body, limits)
        while True:
            try:
                return exchange, await pool.send(exchange, read_s)
            except httpx.HTTPError as exc:
                if not exchange.may_retry(exc):
                    raise exchange.failed(exc) from exc

    @staticmethod
    async def _read(exchange: Exchange, answer: Answer) -> bytes:
        try:
            return await answer.read()
        except httpx.HTTPError as exc:
            raise exchange.failed(exc, in_answer=True) from exc
        finally:
            await answer.close()
