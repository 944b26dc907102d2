"""A streamed answer, read as an iterator of deltas."""

from __future__ import annotations

import contextlib
from collections import deque

from backends.flows import Stream
from backends.openai.answers.reading import StreamReader
from backends.openai.connections.bounds import DRAIN_BYTES, DRAIN_S
from backends.openai.connections.pools import Answer, Pools
from backends.openai.exchange import HTTP_ERRORS, Exchange
from backends.openai.protocol import Delta
from budget.errors import KeepwarmError


class AsyncDeltaStream(Stream[Delta]):
    """The deltas of one answer. Closing it before its end closes the connection: generation stops."""

    def __init__(
        self, exchange: Exchange, answer: Answer, reader: StreamReader, pools: Pools
    ) -> None:
        self._exchange = exchange
        # An event loop's connections are closed once their pools are garbage: not before this answer is.
        self._pools = pools
        self._answer = answer
        self._reader = reader
        self._ready: deque[Delta] = deque()
        self._counted = 0
        self._closed = False

    async def __anext__(self) -> Delta:
        while not self._ready:
            if self._closed or self._reader.done:
                await self.aclose()
                raise StopAsyncIteration
            try:
                await self._pull()
            except BaseException as error:
                self._exchange.secrets.clean(error)
                await self.aclose()
                raise
        return self._ready.popleft()

    async def _pull(self) -> None:
        bounds, reader = self._exchange.bounds, self._reader
        reader.check()
        bounds.waiting()
        try:
            chunk = await self._answer.chunk()
        except HTTP_ERRORS as exc:
            raise self._exchange.failed(exc, in_answer=True, text=reader.text) from exc
        finally:
            bounds.paused()
        evaluated = reader.evaluated
        deltas = reader.ended() if chunk is None else reader.feed(chunk)
        if reader.evaluated > evaluated:
            bounds.advanced()
        self._ready.extend(deltas)
        bounds.heard(reader.events, sum(map(self._is_progress, deltas)))

    def _is_progress(self, delta: Delta) -> bool:
        """Whether a token came. llama.cpp also counts tokens whose text it has not sent yet."""
        counted = delta.timings.predicted_n if delta.timings else 0
        more, self._counted = counted > self._counted, max(counted, self._counted)
        return delta.is_token or more

    async def aclose(self) -> None:
        """Give the connection back, or close it when the answer is unfinished. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._reader.done:
                await self._drain()
        finally:
            await self._answer.close()

    async def _drain(self) -> None:
        """Read the rest of the body, which is on its way already, so that the pool can keep the socket."""
        bounds = self._exchange.bounds
        bounds.limit_bytes = bounds.bytes + DRAIN_BYTES
        bounds.expect("the end of the answer", DRAIN_S)
        with contextlib.suppress(KeepwarmError, *HTTP_ERRORS):
            while await self._answer.chunk() is not None:
                pass
