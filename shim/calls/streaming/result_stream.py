"""Results of Python models: items as a generator gives them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from backends.flows import BlockingStream, Stream
from budget.errors import EngineDied
from shim.calls.call import Call
from shim.calls.leased import Leases
from shim.calls.streaming.held_stream import HeldStream
from shim.calls.streaming.interruption import taken_back
from shim.replies import CallReply


class AsyncResultStream(HeldStream[Any, CallReply]):
    """As `ResultStream`, awaited; `aclose` closes it."""

    def __init__(
        self, leases: Leases, call: Call, source: Stream[Any], payload: Mapping[str, Any]
    ) -> None:
        self._payload = payload
        super().__init__(leases, call, source)

    async def _next_source(self) -> Stream[Any]:
        connection = self._call.connection
        if connection is not None and (notices := connection.notices()):
            error = taken_back(self._call, notices)
            # Of an engine that died, the connection to it says so, too, and the keeper says more.
            if error is not None and not isinstance(error, EngineDied):
                raise error
        return self._source

    def _take(self, piece: Any) -> None:  # noqa: ARG002 - the caller has it
        if self._call.first_ns is None:
            self._call.first_ns = time.monotonic_ns()

    def _whole(self) -> CallReply:
        return self._call.call_reply(None)

    async def _again(self) -> Stream[Any]:
        return await self._leases.begin_call(self._call, self._payload)


class ResultStream(BlockingStream[Any]):
    """Iterate over the items; closing it early ends the generator and gives the lease back.

    `reply` says how it went, after the last item. Use it as a context manager, or close it.
    """

    _flows: AsyncResultStream

    @property
    def reply(self) -> CallReply:
        """How the call went; its `value` is None, because the items were given one by one.

        Raises:
            InvalidRequest: the stream is not at its end.
        """
        return self._flows.reply

    def __del__(self) -> None:
        if "_flows" in vars(self):  # else it was interrupted while it was made
            self.close()
