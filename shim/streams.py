"""Streamed replies: pieces as they come, the whole reply when they are all there."""

from __future__ import annotations

import time
from collections.abc import Sequence

from backends.flows import BlockingStream, Stream, run_blocking
from backends.openai.protocol import Delta, assemble
from shim.calls.call import Call
from shim.calls.leased import Leases
from shim.calls.streaming.held_stream import HeldStream
from shim.replies import Reply


class AsyncReplyStream(HeldStream[Delta, Reply]):
    """As `ReplyStream`, awaited; `aclose` closes it."""

    def __init__(
        self,
        leases: Leases,
        call: Call,
        source: Stream[Delta],
        before: Sequence[Delta] = (),
    ) -> None:
        self._deltas = list(before)
        super().__init__(leases, call, source)

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

    async def _next_source(self) -> Stream[Delta]:
        if not self._deltas:
            return self._source
        return await self._leases.source(self._call, self._deltas, self._source)

    def _take(self, piece: Delta) -> None:
        call = self._call
        if call.first_ns is None and (
            piece.content or piece.reasoning or piece.tool_calls or piece.finish_reason
        ):
            call.first_ns = time.monotonic_ns()
        self._deltas.append(piece)

    def _whole(self) -> Reply:
        return self._call.reply(assemble(self._deltas))

    async def _again(self) -> Stream[Delta]:
        self._deltas.clear()
        return await self._leases.begin(self._call)


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
