"""Streamed replies: pieces as they come, the whole reply when they are all there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self

from backends.openai.wire import Delta, assemble
from budget.errors import InvalidRequest, KeepwarmError
from shim.call import Call
from shim.reply import Reply

Finish = Callable[[Reply | None, BaseException | None], None]
Explain = Callable[[KeepwarmError], KeepwarmError]
ExplainAsync = Callable[[KeepwarmError], Awaitable[KeepwarmError]]


class Source(Protocol):
    """Pieces of an answer, from one connection."""

    def __next__(self) -> Delta: ...

    def close(self) -> None:
        """Close the connection."""
        ...


class AsyncSource(Protocol):
    """Pieces of an answer, from one connection."""

    async def __anext__(self) -> Delta: ...

    async def aclose(self) -> None:
        """Close the connection."""
        ...


Resume = Callable[[Sequence[Delta], Source], Source]
ResumeAsync = Callable[[Sequence[Delta], AsyncSource], Awaitable[AsyncSource]]
"""Between two pieces: the source to go on with, another one after an interruption."""


class _Gathering:
    """What sync and async streams share: the pieces so far, and the reply they make."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._deltas: list[Delta] = []
        self._reply: Reply | None = None
        self._closed = False

    @property
    def reply(self) -> Reply:
        """The whole reply, once the stream is at its end.

        Raises:
            InvalidRequest: it is not.
        """
        if self._reply is None:
            raise InvalidRequest(
                "The stream is not at its end; there is no whole reply.",
                hint="Iterate to the end first.",
            )
        return self._reply

    def _take(self, delta: Delta) -> None:
        if self._call.first_ns is None and (
            delta.content or delta.reasoning or delta.tool_calls or delta.finish_reason
        ):
            self._call.first_ns = time.monotonic_ns()
        self._deltas.append(delta)

    def _whole(self) -> Reply:
        self._reply = self._call.reply(assemble(self._deltas))
        return self._reply


class ReplyStream(_Gathering, Iterator[Delta]):
    """Iterate over the pieces (`str(piece)` is its text); closing it early stops generation.

    `reply` is the whole reply after the last piece. Use it as a context manager, or close it.
    """

    def __init__(
        self,
        call: Call,
        source: Source,
        explain: Explain,
        finish: Finish,
        resume: Resume | None = None,
    ) -> None:
        super().__init__(call)
        self._source = source
        self._resume = resume
        self._explain = explain
        self._finish = finish

    def __next__(self) -> Delta:
        if self._closed:
            raise StopIteration
        try:
            if self._resume is not None and self._deltas:
                self._source = self._resume(self._deltas, self._source)
            delta = next(self._source)
        except StopIteration:
            self._end(self._whole(), None)
            raise
        except KeepwarmError as error:
            explained = self._explain(error)
            self._end(None, explained)
            raise explained from error
        except BaseException as error:
            self._end(None, error)
            raise
        self._take(delta)
        return delta

    def close(self) -> None:
        """Stop generation and give the lease back. Idempotent; the end of the stream does it too."""
        self._end(None, None)

    def _end(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._source.close()
        finally:
            self._finish(reply, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncReplyStream(_Gathering, AsyncIterator[Delta]):
    """As `ReplyStream`, awaited; `aclose` closes it."""

    def __init__(
        self,
        call: Call,
        source: AsyncSource,
        explain: ExplainAsync,
        finish: Finish,
        resume: ResumeAsync | None = None,
    ) -> None:
        super().__init__(call)
        self._source = source
        self._resume = resume
        self._explain = explain
        self._finish = finish

    async def __anext__(self) -> Delta:
        if self._closed:
            raise StopAsyncIteration
        try:
            if self._resume is not None and self._deltas:
                self._source = await self._resume(self._deltas, self._source)
            delta = await anext(self._source)
        except StopAsyncIteration:
            await self._end(self._whole(), None)
            raise
        except KeepwarmError as error:
            explained = await self._explain(error)
            await self._end(None, explained)
            raise explained from error
        except BaseException as error:
            await self._end(None, error)
            raise
        self._take(delta)
        return delta

    async def aclose(self) -> None:
        """Stop generation and give the lease back. Idempotent."""
        await self._end(None, None)

    async def _end(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._source.aclose()
        finally:
            self._finish(reply, error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
