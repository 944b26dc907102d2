"""A stream that holds a lease: what streams of pieces of an answer and of results have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Coroutine, Generator
from typing import Any, Generic, Self, TypeVar

from backends.flows import Stream
from budget.errors import InvalidRequest, KeepwarmError
from shim.calls.call import Call
from shim.calls.leased import Leases, raise_explained
from shim.calls.streaming.read_streams import reading_place, remember
from shim.calls.streaming.unclosed_streams import close_on, running_loop

_T = TypeVar("_T")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="HeldStream[Any, Any]")
_INHERITED: list[Stream[Any]] = []


class HeldStream(Stream[_T], Generic[_T, _R]):
    """Pieces as they come; the lease is given back at the end, or when it is closed.

    Args:
        leases: gives the lease back.
        call: the call that it belongs to.
        source: where the pieces come from.
    """

    _closed = True
    """True until `__init__` ends: an interrupt may leave the stream half made; its source closes itself."""

    def __init__(self, leases: Leases, call: Call, source: Stream[_T]) -> None:
        self._leases = leases
        self._call = call
        self._source = source
        self._reply: _R | None = None
        self._pid = os.getpid()
        self._loop = running_loop()
        self.read_at: object = None
        self._closed = False

    @property
    def lease(self) -> str | None:
        """The lease that it holds; None once it is closed, and for a remote model."""
        grant = self._call.grant
        return None if self._closed or grant is None else grant.lease

    @property
    def reply(self) -> _R:
        """The whole reply, once the stream is at its end.

        Raises:
            InvalidRequest: it is not.
        """
        if self._reply is None:
            raise unfinished()
        return self._reply

    @abstractmethod
    async def _next_source(self) -> Stream[_T]:
        """Where the next piece comes from; asked for before each."""

    @abstractmethod
    def _take(self, piece: _T) -> None:
        """Note a piece."""

    @abstractmethod
    def _whole(self) -> _R:
        """The reply, of all pieces."""

    @abstractmethod
    async def _again(self) -> Stream[_T]:
        """The source of an answer that is asked for once more; what was noted is dropped."""

    async def __anext__(self) -> _T:
        if self._closed:
            raise StopAsyncIteration
        if self._pid != os.getpid():
            raise InvalidRequest(
                f"This stream belongs to process {self._pid}, of which this one is a child.",
                hint="A forked process asks for streams of its own.",
            )
        if (place := reading_place()) != self.read_at:
            self.read_at = place
            remember(self)
        try:
            self._source = await self._next_source()
            piece = await anext(self._source)
        except StopAsyncIteration:
            self._reply = self._whole()
            await self._end(self._reply, None)
            raise
        except KeepwarmError as error:
            await self._begin_anew(error)
            return await anext(self)
        except BaseException as error:
            await self._end(None, error)
            raise
        self._take(piece)
        return piece

    async def _begin_anew(self, error: KeepwarmError) -> None:
        """Ask once more, or elsewhere, for an answer of which nothing was delivered; else raise."""
        self._closed = True  # the lease ends here
        try:
            await self._source.aclose()
        finally:
            failure = await self._leases.failed(self._call, error)
        if failure is not None:
            raise_explained(failure, error)
        self._source = await self._again()
        self._closed = False

    async def aclose(self) -> None:
        """Stop the work and give the lease back. Idempotent; the end of the stream does it too.

        In a forked child nothing happens: the parent reads on.
        """
        await self._end(None, None)

    async def _end(self, reply: _R | None, error: BaseException | None) -> None:
        if self._closed:
            return
        if self._pid != os.getpid():
            return
        self._closed = True
        try:
            await self._source.aclose()
        finally:
            answer: Any = reply
            self._leases.ended(self._call, answer, error)

    def __del__(self) -> None:
        # Left open on an event loop: nothing can be awaited here.
        if self._closed:
            return
        if self._pid != os.getpid():
            # Not even collected: that could wait for a lock that a thread of the parent held at the fork.
            _INHERITED.append(self._source)
            return
        self._closed = True
        if self._call.connection is not None:
            self._call.connection.close()
        if self._loop is not None:
            close_on(self._loop, self._source)


class StreamStart(Coroutine[Any, Any, _S], Generic[_S, _T]):
    """An asynchronous stream that begins when it is awaited, entered or iterated over.

    `async with shim.astream(...) as stream`, `async for piece in shim.astream(...)` and
    `stream = await shim.astream(...)` do what they say.
    """

    def __init__(self, start: Coroutine[Any, Any, _S]) -> None:
        self._start = start
        self._stream: _S | None = None

    def send(self, value: Any) -> Any:
        """As of every coroutine: an event loop's task drives it."""
        return self._start.send(value)

    def throw(self, *failure: Any) -> Any:
        """As of every coroutine."""
        return self._start.throw(*failure)

    def close(self) -> None:
        """As of every coroutine: nothing is asked any more."""
        self._start.close()

    def __await__(self) -> Generator[Any, Any, _S]:
        return self._start.__await__()

    async def __aenter__(self) -> _S:
        return await self._begun()

    async def __aexit__(self, *_failure: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        piece: _T = await anext(await self._begun())
        return piece

    async def _begun(self) -> _S:
        if self._stream is None:
            self._stream = await self._start
        return self._stream

    async def aclose(self) -> None:
        """Stop generation and give the lease back, if there is any. Idempotent."""
        self._start.close()
        if self._stream is not None:
            await self._stream.aclose()

    @property
    def reply(self) -> Any:
        """The whole reply, once it was iterated over to the end.

        Raises:
            InvalidRequest: it was not.
        """
        if self._stream is None:
            raise unfinished()
        return self._stream.reply


def unfinished() -> InvalidRequest:
    """The error of a reply that is asked for before the stream's end."""
    return InvalidRequest(
        "The stream is not at its end; there is no whole reply.", hint="Iterate to the end first."
    )
