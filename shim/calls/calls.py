"""The steps of a call: get a lease, send the request, give the lease back, trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from backends.base import Endpoint
from backends.openai.connections.bounds import Limits
from backends.openai.requests.verb_request import VerbRequest
from budget.errors import KeepwarmError
from shim.calls.call import Call
from shim.calls.leased import Leases, raise_explained
from shim.calls.streaming.result_stream import AsyncResultStream
from shim.replies import Answer, CallReply, EmbeddingReply, Reply
from shim.streams import AsyncReplyStream

_Answer = TypeVar("_Answer", bound=Answer)
_Value = TypeVar("_Value")


class Calls(Leases):
    """The flows of one session's calls, of threads or of event loops."""

    async def chat(self, call: Call) -> Reply:
        """One whole answer.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        if call.in_background:
            call.whole = True
            async with await self.stream(call) as stream:
                async for _ in stream:
                    pass
            return stream.reply
        return await self._run(call, self.transport.chat, call.request, call.reply)

    async def embed(self, call: Call, texts: Sequence[str]) -> EmbeddingReply:
        """One vector per text.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        return await self._run(call, self.transport.embed, texts, call.embedding_reply)

    async def ask(
        self, call: Call, request: VerbRequest[_Value], finish: Callable[[_Value], _Answer]
    ) -> _Answer:
        """The reply to a verb that is no chat.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        return await self._run(call, self._asked, request, finish)

    async def _asked(
        self, endpoint: Endpoint, request: VerbRequest[_Value], **limits: Unpack[Limits]
    ) -> _Value:
        if endpoint.backend != "python":
            return await self.transport.ask(endpoint, request, **limits)
        result = await self.workers.call(endpoint, request.payload(), **limits)
        return request.result(endpoint.model_id, result)

    async def stream(self, call: Call) -> AsyncReplyStream:
        """One answer in pieces.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`, here or while iterating.
        """
        if call.resumable:
            call.preemptible = call.wants["preemptible"] = True
        return AsyncReplyStream(self, call, await self.begin(call))

    async def call(self, call: Call, payload: Mapping[str, Any]) -> CallReply:
        """The result of a Python model.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        return await self._run(call, self.workers.call, payload, call.call_reply)

    async def stream_call(self, call: Call, payload: Mapping[str, Any]) -> AsyncResultStream:
        """The results of a Python model, one by one.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`, here or while iterating.
        """
        return AsyncResultStream(self, call, await self.begin_call(call, payload), payload)

    async def _run(
        self,
        call: Call,
        send: Callable[..., Awaitable[Any]],
        what: object,
        finish: Callable[[Any], _Answer],
    ) -> _Answer:
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
