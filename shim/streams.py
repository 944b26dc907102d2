"""Streamed replies: pieces as they come, the whole reply when they are all there."""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine, Generator, Sequence
from typing import Any, Self

from backends.flows import BlockingStream, Stream, run_blocking
from backends.openai.protocol import Delta, assemble
from budget.errors import EngineDied, InvalidRequest, OutOfMemory
from shim.calls.call import Call
from shim.calls.leased import UNEXPLAINED, Leases
from shim.calls.unclosed_streams import close_on, running_loop
from shim.replies import Reply


def _unfinished() -> InvalidRequest:
    return InvalidRequest(
        "The stream is not at its end; there is no whole reply.", hint="Iterate to the end first."
    )


class AsyncReplyStream(Stream[Delta]):
    """As `ReplyStream`, awaited; `aclose` closes it."""

    _closed = True
    """True until `__init__` ends: an interrupt may leave the stream half made; its source closes itself."""

    def __init__(
        self,
        leases: Leases,
        call: Call,
        source: Stream[Delta],
        before: Sequence[Delta] = (),
    ) -> None:
        self._leases = leases
        self._call = call
        self._source = source
        self._deltas = list(before)
        self._reply: Reply | None = None
        self._pid = os.getpid()
        self._loop = running_loop()
        self._closed = False

    @property
    def reply(self) -> Reply:
        """The whole reply, once the stream is at its end.

        Raises:
            InvalidRequest: it is not.
        """
        if self._reply is None:
            raise _unfinished()
        return self._reply

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(delta.content for delta in self._deltas)

    async def go_on(self) -> AsyncReplyStream | None:
        """The rest of an answer that was broken off by an exception of the caller's, as a new stream.

        It waits for a lease of its own. None where nothing is left to go on from, or where an answer of
        this kind can only begin anew (a grammar, tools, a seed at a temperature above 0).

        Raises:
            KeepwarmError: as the call that made the stream.
        """
        await self.aclose()
        if self._reply is not None:
            return None
        leases, call, said = self._leases, self._call, self._deltas
        source = await leases.rest(call, said)
        return None if source is None else AsyncReplyStream(leases, call, source, said)

    async def __anext__(self) -> Delta:
        if self._closed:
            raise StopAsyncIteration
        if self._pid != os.getpid():
            raise InvalidRequest(
                f"This stream belongs to process {self._pid}, of which this one is a child.",
                hint="A forked process asks for streams of its own.",
            )
        try:
            if self._deltas:
                self._source = await self._leases.source(self._call, self._deltas, self._source)
            delta = await anext(self._source)
        except StopAsyncIteration:
            self._reply = self._call.reply(assemble(self._deltas))
            await self._end(self._reply, None)
            raise
        except UNEXPLAINED as error:
            await self._begin_anew(error)
            return await anext(self)
        except BaseException as error:
            await self._end(None, error)
            raise
        call = self._call
        if call.first_ns is None and (
            delta.content or delta.reasoning or delta.tool_calls or delta.finish_reason
        ):
            call.first_ns = time.monotonic_ns()
        self._deltas.append(delta)
        return delta

    async def _begin_anew(self, error: EngineDied | OutOfMemory) -> None:
        """Ask once more for an answer of which nothing was delivered when its engine ended; else raise."""
        self._closed = True  # the lease ends here
        try:
            await self._source.aclose()
        finally:
            failure = await self._leases.failed(self._call, error)
        if failure is not None:
            raise failure from error
        self._deltas.clear()
        self._source = await self._leases.begin(self._call)
        self._closed = False

    async def aclose(self) -> None:
        """Stop generation and give the lease back. Idempotent; the end of the stream does it too.

        In a forked child nothing happens: the parent reads on.
        """
        await self._end(None, None)

    async def _end(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._closed:
            return
        if self._pid != os.getpid():
            return
        self._closed = True
        try:
            await self._source.aclose()
        finally:
            self._leases.ended(self._call, reply, error)

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


class StreamStart(Coroutine[Any, Any, AsyncReplyStream]):
    """An asynchronous stream that begins when it is awaited, entered or iterated over.

    `async with shim.astream(...) as stream`, `async for piece in shim.astream(...)` and
    `stream = await shim.astream(...)` do what they say.
    """

    def __init__(self, start: Coroutine[Any, Any, AsyncReplyStream]) -> None:
        self._start = start
        self._stream: AsyncReplyStream | None = None

    def send(self, value: Any) -> Any:
        """As of every coroutine: an event loop's task drives it."""
        return self._start.send(value)

    def throw(self, *failure: Any) -> Any:
        """As of every coroutine."""
        return self._start.throw(*failure)

    def close(self) -> None:
        """As of every coroutine: nothing is asked any more."""
        self._start.close()

    def __await__(self) -> Generator[Any, Any, AsyncReplyStream]:
        return self._start.__await__()

    async def __aenter__(self) -> AsyncReplyStream:
        return await self._begun()

    async def __aexit__(self, *_failure: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        return await anext(await self._begun())

    async def _begun(self) -> AsyncReplyStream:
        if self._stream is None:
            self._stream = await self._start
        return self._stream

    async def aclose(self) -> None:
        """Stop generation and give the lease back, if there is any. Idempotent."""
        self._start.close()
        if self._stream is not None:
            await self._stream.aclose()

    @property
    def reply(self) -> Reply:
        """The whole reply, once it was iterated over to the end.

        Raises:
            InvalidRequest: it was not.
        """
        if self._stream is None:
            raise _unfinished()
        return self._stream.reply


_INHERITED: list[Stream[Delta]] = []


class ReplyStream(BlockingStream[Delta]):
    """Iterate over the pieces (`str(piece)` is its text); closing it early stops generation.

    `reply` is the whole reply after the last piece. Use it as a context manager, or close it.
    """

    _flows: AsyncReplyStream

    @property
    def reply(self) -> Reply:
        """The whole reply, once the stream is at its end.

        Raises:
            InvalidRequest: it is not.
        """
        return self._flows.reply

    @property
    def text(self) -> str:
        """The text so far."""
        return self._flows.text

    def go_on(self) -> ReplyStream | None:
        """The rest of an answer that was broken off by an exception of the caller's, as a new stream.

        It waits for a lease of its own. None where nothing is left to go on from, or where an answer of
        this kind can only begin anew (a grammar, tools, a seed at a temperature above 0).

        Raises:
            KeepwarmError: as the call that made the stream.
        """
        rest = run_blocking(self._flows.go_on())
        return None if rest is None else ReplyStream(rest)

    def __del__(self) -> None:
        if "_flows" in vars(self):  # else it was interrupted while it was made
            self.close()
