"""The steps of a call: get a lease, send the request, give the lease back, trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, Unpack, cast

from backends.base import Endpoint
from backends.openai.connections.bounds import Limits
from backends.openai.requests.verb_request import VerbRequest
from backends.openai.resume import of_texts
from budget.errors import KeepwarmError
from shim.calls.call import Call
from shim.calls.leased import Leases, raise_explained
from shim.calls.streaming.result_stream import AsyncResultStream
from shim.replies import Answer, Reply
from shim.streams import AsyncReplyStream

_Answer = TypeVar("_Answer", bound=Answer)
_Value = TypeVar("_Value")


class Calls(Leases):
    """The flows of one session's calls, of threads or of event loops."""

    async def answer(
        self,
        call: Call,
        send: Callable[..., Awaitable[_Value]],
        what: object,
        finish: Callable[[_Value], _Answer],
    ) -> _Answer:
        """The reply to a call.

        Args:
            call: the call.
            send: sends a request to an endpoint, within the call's limits.
            what: the request.
            finish: makes the reply of what came back.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        if call.in_background:
            whole: Any = await self._interruptible(call)
            return cast("_Answer", whole)
        while True:
            endpoint = await self.lease(call)
            try:
                answer = finish(await send(endpoint, what, **call.limits))
            except KeepwarmError as error:
                if (failure := await self.failed(call, error)) is not None:
                    raise_explained(failure, error)
            except BaseException as error:
                self.ended(call, None, error)
                raise
            else:
                self.ended(call, answer, None)
                return answer

    async def _interruptible(self, call: Call) -> Reply:
        """The reply to a chat that is streamed internally, so that it can be interrupted and go on."""
        call.whole = True
        async with await self.stream(call) as stream:
            async for _ in stream:
                pass
        return stream.reply

    async def ask(
        self, endpoint: Endpoint, request: VerbRequest[_Value], **limits: Unpack[Limits]
    ) -> _Value:
        """The value of a verb that is no chat, from an engine or from a Python model.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        if endpoint.backend != "python":
            return await self.transport.ask(endpoint, request, **limits)
        result = await self.workers.call(endpoint, request.payload(), **limits)
        return request.result(endpoint.name, result)

    async def stream(self, call: Call) -> AsyncReplyStream:
        """One answer in pieces.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`, here or while iterating.
        """
        if call.resumable and of_texts(call.request.messages):
            call.preemptible = call.wants["preemptible"] = True
        return AsyncReplyStream(self, call, await self.begin(call))

    async def stream_call(self, call: Call, payload: Mapping[str, Any]) -> AsyncResultStream:
        """The results of a Python model, one by one.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`, here or while iterating.
        """
        return AsyncResultStream(self, call, await self.begin_call(call, payload), payload)
