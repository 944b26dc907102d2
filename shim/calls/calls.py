"""The steps of a call: get a lease, send the request, give the lease back, trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from backends.flows import Stream
from backends.openai.protocol import Delta
from backends.openai.resume import can_resume
from budget.errors import PromptTooLong
from shim.calls.call import Call
from shim.calls.interruption import outgoing, to_yield
from shim.calls.leased import UNEXPLAINED, Leases
from shim.replies import EmbeddingReply, Reply
from shim.streams import AsyncReplyStream

_Answer = TypeVar("_Answer", Reply, EmbeddingReply)


class Calls(Leases):
    """The flows of one session's calls, of threads or of event loops."""

    async def chat(self, call: Call) -> Reply:
        """One whole answer.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`.
        """
        if call.in_background:
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

    async def stream(self, call: Call) -> AsyncReplyStream:
        """One answer in pieces.

        Raises:
            KeepwarmError: one of the tree in `budget.errors`, here or while iterating.
        """
        call.preemptible = not call.remote and can_resume(call.request)
        endpoint = await self.lease(call)
        source = self.transport.stream(endpoint, outgoing(call), **call.limits)
        return AsyncReplyStream(
            self, call, await self._begun(call, source), partial(self._rest, call)
        )

    async def _rest(self, call: Call, said: Sequence[Delta]) -> AsyncReplyStream | None:
        """The rest of a broken-off answer, under a new lease; None if the answer has to begin anew."""
        progress = to_yield(call, said) if said and call.preemptible else None
        if progress is None:
            return None
        call.runs_on = False
        endpoint = await self.lease(call)
        source = self.transport.resume(endpoint, call.request, None, progress, **call.limits)
        try:
            begun = await self._begun(call, source)
        except PromptTooLong:
            # Tokenised again, the same text can have more tokens than were generated.
            return None
        return AsyncReplyStream(self, call, begun, partial(self._rest, call), said)

    async def _run(
        self,
        call: Call,
        send: Callable[..., Awaitable[Any]],
        what: object,
        finish: Callable[[Any], _Answer],
    ) -> _Answer:
        endpoint = await self.lease(call)
        answer: _Answer | None = None
        failure: BaseException | None = None
        try:
            answer = finish(await send(endpoint, what, **call.limits))
        except UNEXPLAINED as error:
            failure = await self.explained(call, error)
            raise failure from error
        except BaseException as error:
            failure = error
            raise
        finally:
            self.ended(call, answer, failure)
        return answer

    async def _begun(self, call: Call, source: Awaitable[Stream[Delta]]) -> Stream[Delta]:
        """A stream that has begun; where it does not, the lease is back and the keeper's account raised."""
        try:
            return await source
        except UNEXPLAINED as error:
            failure = await self.explained(call, error)
            self.ended(call, None, failure)
            raise failure from error
        except BaseException as error:
            self.ended(call, None, error)
            raise
