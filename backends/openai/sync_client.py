"""The data plane for threads: chat, stream and embed on pooled httpx connections."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Self

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


class DeltaStream(Iterator[Delta]):
    """The deltas of one answer. Closing it before its end closes the connection: generation stops."""

    def __init__(
        self, exchange: Exchange, response: httpx.Response, reader: StreamReader | None = None
    ) -> None:
        self._exchange = exchange
        self._response = response
        self._chunks = iter(response.iter_raw())
        self._reader = reader or exchange.reader()
        self._ready: deque[Delta] = deque()
        self._closed = False

    def __next__(self) -> Delta:
        while not self._ready:
            if self._closed or self._reader.done:
                self.close()
                raise StopIteration
            self._pull()
        return self._ready.popleft()

    def _pull(self) -> None:
        try:
            chunk = next(self._chunks, None)
            if chunk is None:
                self._reader.ended()
            else:
                self._ready.extend(self._reader.feed(chunk))
        except httpx.HTTPError as exc:
            self.close()
            raise self._exchange.failed(exc, in_answer=True) from exc
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the connection back, or close it when the answer is unfinished. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(httpx.HTTPError):
            if self._reader.done:
                # The end of the body is in flight already; reading it lets the pool keep the socket.
                deque(self._chunks, maxlen=0)
        self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class SyncTransport:
    """Requests from any thread; one connection pool per endpoint. Safe after `fork()`."""

    def __init__(self, timeouts: Timeouts | None = None) -> None:
        self._timeouts = timeouts or Timeouts()
        self._lock = threading.Lock()
        self._pools: dict[str, tuple[httpx.BaseTransport, Route]] = {}
        self._pid = os.getpid()

    def chat(
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> Completion:
        """A whole answer.

        Raises:
            KeepwarmError: the tree of `budget.errors`; `EngineDied` when a local engine is gone.
        """
        body = chat_body(endpoint, request, stream=False)
        return parse_completion(decode(self._fetch(endpoint, CHAT_PATH, body, timeouts)))

    def stream(
        self, endpoint: Endpoint, request: ChatRequest, *, timeouts: Timeouts | None = None
    ) -> DeltaStream:
        """The answer's pieces; returns once the endpoint has begun to answer.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        limits = timeouts or self._timeouts
        body = chat_body(endpoint, request, stream=True)
        exchange, response = self._open(endpoint, CHAT_PATH, body, limits, limits.first_byte_s)
        if response.status_code != 200:
            raise exchange.refusal(response.status_code, self._read(exchange, response))
        exchange.answering()
        return DeltaStream(exchange, response)

    def resume(
        self,
        endpoint: Endpoint,
        request: ChatRequest,
        tokens: Sequence[int] | None,
        progress: Progress,
    ) -> DeltaStream:
        """The rest of an interrupted answer, from all tokens so far; from their text when None.

        Raises:
            KeepwarmError: as `chat`, here or from the iterator.
        """
        prompt: Sequence[int] | str
        if tokens is None:
            raw = self._fetch(endpoint, TEMPLATE_PATH, template_body(request), None)
            prompt = templated(raw) + progress.text
        else:
            prompt = tokens
        limits = self._timeouts
        body = resume_body(endpoint, request, prompt, progress)
        exchange, response = self._open(endpoint, RESUME_PATH, body, limits, limits.first_byte_s)
        if response.status_code != 200:
            raise exchange.refusal(response.status_code, self._read(exchange, response))
        exchange.answering()
        reader = exchange.reader(partial(ResumeReader, before=progress))
        return DeltaStream(exchange, response, reader)

    def embed(
        self, endpoint: Endpoint, texts: Sequence[str], *, timeouts: Timeouts | None = None
    ) -> Embeddings:
        """One vector per text.

        Raises:
            KeepwarmError: as `chat`.
        """
        body = embed_body(endpoint, texts)
        answer = decode(self._fetch(endpoint, EMBED_PATH, body, timeouts))
        return parse_embeddings(answer, len(texts))

    def close(self) -> None:
        """Close every idle connection; running requests fail. The transport can be used again."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for transport, _ in pools.values():
            transport.close()

    def forget(self, endpoint: Endpoint) -> None:
        """Close the pool of an endpoint that will not come back (an engine that was stopped)."""
        with self._lock:
            known = self._pools.pop(pool_key(endpoint), None)
        if known is not None:
            known[0].close()

    def _fetch(
        self, endpoint: Endpoint, path: str, body: bytes, timeouts: Timeouts | None
    ) -> bytes:
        limits = timeouts or self._timeouts
        exchange, response = self._open(endpoint, path, body, limits, limits.answer_s)
        raw = self._read(exchange, response)
        if response.status_code != 200:
            raise exchange.refusal(response.status_code, raw)
        return raw

    def _open(
        self, endpoint: Endpoint, path: str, body: bytes, limits: Timeouts, read_s: float | None
    ) -> tuple[Exchange, httpx.Response]:
        transport, route = self._pool(endpoint)
        exchange = Exchange(endpoint, route, path, body, limits)
        while True:
            try:
                return exchange, transport.handle_request(exchange.request(read_s, is_async=False))
            except httpx.HTTPError as exc:
                if not exchange.may_retry(exc):
                    raise exchange.failed(exc) from exc

    @staticmethod
    def _read(exchange: Exchange, response: httpx.Response) -> bytes:
        try:
            return response.read()
        except httpx.HTTPError as exc:
            raise exchange.failed(exc, in_answer=True) from exc
        finally:
            response.close()

    def _pool(self, endpoint: Endpoint) -> tuple[httpx.BaseTransport, Route]:
        if self._pid != os.getpid():
            # A forked child shares its parent's sockets and, perhaps, a lock held by a thread that
            # does not exist here: it starts with neither.
            self._lock, self._pools, self._pid = threading.Lock(), {}, os.getpid()
        key = pool_key(endpoint)
        known = self._pools.get(key)
        if known is not None:
            return known
        with self._lock:
            # A model that comes and goes gets a new socket every time; the old pools go here.
            for dead in dead_sockets(self._pools):
                self._pools.pop(dead)[0].close()
            if key not in self._pools:
                self._pools[key] = (self._transport(endpoint), Route.to(endpoint))
            return self._pools[key]

    def _transport(self, endpoint: Endpoint) -> httpx.BaseTransport:
        return httpx.HTTPTransport(**transport_settings(endpoint))
