"""How a call runs: lease, request, lease back, trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from backends.base import Endpoint
from backends.flows import Stream
from backends.openai.wire import Delta
from budget.errors import EngineDied
from shim.call import Call, Grant
from shim.interruption import outgoing, to_yield
from shim.leased import Door, Leased
from shim.reply import EmbeddingReply, Reply
from shim.session import Session
from shim.streams import AsyncReplyStream
from shim.tracing import trace_call
from traces import current_run

_Answer = TypeVar("_Answer", Reply, EmbeddingReply)
_Raw = TypeVar("_Raw")


class Calls:
    """The flows of one session's calls through one door."""

    def __init__(self, session: Session, door: Door) -> None:
        self._session = session
        self._door = door

    async def chat(self, call: Call) -> Reply:
        """One whole answer.

        Raises:
            KeepwarmError: the tree of `budget.errors`.
        """
        if self._session.in_background(call):
            async with await self.stream(call) as stream:
                async for _ in stream:
                    pass
            return stream.reply
        send = self._door.transport.chat
        return await self._run(
            call, lambda at: send(at, call.request, deadline=call.deadline), call.reply
        )

    async def embed(self, call: Call, texts: Sequence[str]) -> EmbeddingReply:
        """One vector per text.

        Raises:
            KeepwarmError: the tree of `budget.errors`.
        """
        send = self._door.transport.embed
        return await self._run(
            call, lambda at: send(at, texts, deadline=call.deadline), call.embedding_reply
        )

    async def stream(self, call: Call) -> AsyncReplyStream:
        """One answer in pieces.

        Raises:
            KeepwarmError: the tree of `budget.errors`, here or while iterating.
        """
        call.streamed = True
        leased = await self._lease(call)
        send = self._door.transport.stream
        source = send(call.held.endpoint, outgoing(call), deadline=call.deadline)
        return AsyncReplyStream(leased, await _begun(leased, source), partial(self._rest, call))

    async def _rest(self, call: Call, said: Sequence[Delta]) -> AsyncReplyStream | None:
        """What is left of an answer that was broken off, under a new lease; None: it begins anew."""
        progress = to_yield(call, said) if said and call.preemptible else None
        if progress is None:
            return None
        leased = await self._lease(call)
        send, request, deadline = self._door.transport.resume, call.request, call.deadline
        source = send(call.held.endpoint, request, None, progress, deadline=deadline)
        return AsyncReplyStream(
            leased, await _begun(leased, source), partial(self._rest, call), said
        )

    async def _run(
        self,
        call: Call,
        send: Callable[[Endpoint], Awaitable[_Raw]],
        finish: Callable[[_Raw], _Answer],
    ) -> _Answer:
        leased = await self._lease(call)
        answer: _Answer | None = None
        failure: BaseException | None = None
        try:
            answer = finish(await send(call.held.endpoint))
        except EngineDied as error:
            failure = await leased.explained(error)
            raise failure from error
        except BaseException as error:
            failure = error
            raise
        finally:
            leased.ended(answer, failure)
        return answer

    async def _lease(self, call: Call) -> Leased:
        """Wait for the lease; at a remote endpoint there is nothing to wait for."""
        session = self._session
        if call.remote:
            call.granted(Grant(session.remote_endpoint(call.model)))
            return Leased(call, self._door, None)
        if (run := current_run()) is not None:
            session.follow(run)
        try:
            line, told = await self._door.lines.ask_keeping("lease", **session.want(call))
        except BaseException as error:
            trace_call(call, None, error)
            raise
        call.granted(Grant.from_wire(told))
        return Leased(call, self._door, line)


async def _begun(leased: Leased, source: Awaitable[Stream[Delta]]) -> Stream[Delta]:
    """A stream that has begun; where it does not, the lease is back and the keeper's account is raised."""
    try:
        return await source
    except EngineDied as error:
        failure = await leased.explained(error)
        leased.ended(None, failure)
        raise failure from error
    except BaseException as error:
        leased.ended(None, error)
        raise
