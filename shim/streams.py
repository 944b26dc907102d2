"""Streamed replies: pieces as they come, the whole reply when they are all there."""

from __future__ import annotations

import time

from backends.flows import BlockingStream, Stream
from backends.openai.wire import Delta, assemble
from budget.errors import EngineDied, InvalidRequest
from shim.leased import Leased
from shim.reply import Reply


class AsyncReplyStream(Stream[Delta]):
    """As `ReplyStream`, awaited; `aclose` closes it."""

    def __init__(self, leased: Leased, source: Stream[Delta]) -> None:
        self._leased = leased
        self._source = source
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

    async def __anext__(self) -> Delta:
        if self._closed:
            raise StopAsyncIteration
        try:
            if self._deltas:
                self._source = await self._leased.source(self._deltas, self._source)
            delta = await anext(self._source)
        except StopAsyncIteration:
            self._reply = self._leased.call.reply(assemble(self._deltas))
            await self._end(self._reply, None)
            raise
        except EngineDied as error:
            failure = await self._leased.explained(error)
            await self._end(None, failure)
            raise failure from error
        except BaseException as error:
            await self._end(None, error)
            raise
        call = self._leased.call
        if call.first_ns is None and (
            delta.content or delta.reasoning or delta.tool_calls or delta.finish_reason
        ):
            call.first_ns = time.monotonic_ns()
        self._deltas.append(delta)
        return delta

    async def aclose(self) -> None:
        """Stop generation and give the lease back. Idempotent; the end of the stream does it too."""
        await self._end(None, None)

    async def _end(self, reply: Reply | None, error: BaseException | None) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            await self._source.aclose()
        finally:
            self._leased.ended(reply, error)


class ReplyStream(BlockingStream[Delta]):
    """Iterate over the pieces (`str(piece)` is its text); closing it early stops generation.

    `reply` is the whole reply after the last piece. Use it as a context manager, or close it.
    """

    _flows: AsyncReplyStream

    def __init__(self, flows: AsyncReplyStream) -> None:
        super().__init__(flows)

    @property
    def reply(self) -> Reply:
        """The whole reply, once the stream is at its end.

        Raises:
            InvalidRequest: it is not.
        """
        return self._flows.reply

    def __del__(self) -> None:
        self.close()
