"""How a call runs on an event loop: lease, request, lease back, trace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from backends.openai.wire import Delta
from budget.errors import EngineDied, KeepwarmError, error_from_wire
from shim.aline import AsyncKeeperLine
from shim.call import Call, Grant
from shim.interruption import back, outgoing, to_yield, told, wanted_back
from shim.reply import EmbeddingReply, Reply
from shim.session import Session
from shim.streams import AsyncReplyStream, AsyncSource, ResumeAsync
from shim.sync_calls import held, spent
from shim.tracing import trace_call
from traces import current_run

_Answer = TypeVar("_Answer", Reply, EmbeddingReply)
_Raw = TypeVar("_Raw")


class AsyncCalls:
    """Calls of one session, from any event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def run(
        self,
        call: Call,
        send: Callable[[Grant], Awaitable[_Raw]],
        finish: Callable[[_Raw], _Answer],
    ) -> _Answer:
        """One request and its whole answer.

        Raises:
            KeepwarmError: the tree of `budget.errors`.
        """
        line = await self._lease(call)
        answer: _Answer | None = None
        failure: BaseException | None = None
        try:
            answer = finish(await send(held(call)))
        except EngineDied as error:
            failure = await self._explained(call, line, error)
            raise failure from error
        except BaseException as error:
            failure = error
            raise
        finally:
            self._done(call, line, answer, failure)
        return answer

    async def stream(self, call: Call) -> AsyncReplyStream:
        """One request and its answer in pieces.

        Raises:
            KeepwarmError: the tree of `budget.errors`, here or while iterating.
        """
        call.streamed = True
        line = await self._lease(call)
        transport = self._session.async_transport
        try:
            source = await transport.stream(held(call).endpoint, outgoing(call))
        except KeepwarmError as error:
            failure = await self._explained(call, line, error)
            self._done(call, line, None, failure)
            raise failure from error
        except BaseException as error:
            self._done(call, line, None, error)
            raise
        return AsyncReplyStream(
            call,
            source,
            lambda error: self._explained(call, line, error),
            lambda reply, error: self._done(call, line, reply, error),
            self._resumer(call, line) if line is not None and call.preemptible else None,
        )

    def _resumer(self, call: Call, line: AsyncKeeperLine) -> ResumeAsync:
        """What a stream asks between two pieces: whether it has to yield, and how it goes on."""
        transport, refused = self._session.async_transport, False

        async def resume(deltas: Sequence[Delta], source: AsyncSource) -> AsyncSource:
            nonlocal refused
            if refused or not wanted_back(call, await line.notices()):
                return source
            progress = to_yield(call, deltas)
            if progress is None:
                refused = True
                return source
            await source.aclose()
            tokens = back(call, await line.ask("yielded", **told(call, progress)))
            return await transport.resume(held(call).endpoint, call.request, tokens, progress)

        return resume

    async def _lease(self, call: Call) -> AsyncKeeperLine | None:
        """Wait for the lease; at a remote endpoint there is nothing to wait for."""
        session = self._session
        if call.remote:
            call.granted(Grant(session.remote_endpoint(call.model)))
            return None
        if (run := current_run()) is not None:
            session.follow(run)
        try:
            line, told = await session.async_lines.ask_keeping("lease", **session.want(call))
        except BaseException as error:
            trace_call(call, None, error)
            raise
        call.granted(Grant.from_wire(told))
        return line

    def _done(
        self,
        call: Call,
        line: AsyncKeeperLine | None,
        answer: Reply | EmbeddingReply | None,
        error: BaseException | None,
    ) -> None:
        """Give the lease and the connection back; an interrupted call closes it instead."""
        if line is not None:
            try:
                if error is not None and not isinstance(error, Exception):
                    line.close()
                else:
                    line.tell("end", lease=held(call).lease, **spent(answer))
                    self._session.async_lines.give(line)
            except KeepwarmError:
                line.close()
        trace_call(call, answer, error)

    @staticmethod
    async def _explained(
        call: Call, line: AsyncKeeperLine | None, error: KeepwarmError
    ) -> KeepwarmError:
        """A broken connection to a local engine, with the keeper's account of what happened."""
        if line is None or not isinstance(error, EngineDied):
            return error
        grant = held(call)
        try:
            told = await line.ask("diagnose", engine=grant.engine, generation=grant.generation)
        except KeepwarmError as gone:
            return gone
        return error_from_wire(told["death"]) if told["death"] else error
