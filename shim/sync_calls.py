"""How a call runs on a thread: lease, request, lease back, trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from backends.openai.wire import Delta
from budget.errors import EngineDied, InternalError, KeepwarmError, error_from_wire
from shim.call import Call, Grant
from shim.interruption import back, outgoing, to_yield, told, wanted_back
from shim.line import KeeperLine
from shim.reply import EmbeddingReply, Reply
from shim.session import Session
from shim.streams import ReplyStream, Resume, Source
from shim.tracing import trace_call
from traces import current_run

_Answer = TypeVar("_Answer", Reply, EmbeddingReply)
_Raw = TypeVar("_Raw")


class SyncCalls:
    """Calls of one session, from any thread."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(
        self, call: Call, send: Callable[[Grant], _Raw], finish: Callable[[_Raw], _Answer]
    ) -> _Answer:
        """One request and its whole answer.

        Raises:
            KeepwarmError: the tree of `budget.errors`.
        """
        line = self._lease(call)
        answer: _Answer | None = None
        failure: BaseException | None = None
        try:
            answer = finish(send(held(call)))
        except EngineDied as error:
            failure = self._explained(call, line, error)
            raise failure from error
        except BaseException as error:
            failure = error
            raise
        finally:
            self._done(call, line, answer, failure)
        return answer

    def stream(self, call: Call) -> ReplyStream:
        """One request and its answer in pieces.

        Raises:
            KeepwarmError: the tree of `budget.errors`, here or while iterating.
        """
        call.streamed = True
        line = self._lease(call)
        transport = self._session.sync_transport
        try:
            source = transport.stream(held(call).endpoint, outgoing(call))
        except KeepwarmError as error:
            failure = self._explained(call, line, error)
            self._done(call, line, None, failure)
            raise failure from error
        except BaseException as error:
            self._done(call, line, None, error)
            raise
        return ReplyStream(
            call,
            source,
            lambda error: self._explained(call, line, error),
            lambda reply, error: self._done(call, line, reply, error),
            self._resumer(call, line) if line is not None and call.preemptible else None,
        )

    def _resumer(self, call: Call, line: KeeperLine) -> Resume:
        """What a stream asks between two pieces: whether it has to yield, and how it goes on."""
        transport, refused = self._session.sync_transport, False

        def resume(deltas: Sequence[Delta], source: Source) -> Source:
            nonlocal refused
            if refused or not wanted_back(call, line.notices()):
                return source
            progress = to_yield(call, deltas)
            if progress is None:
                refused = True
                return source
            source.close()
            tokens = back(call, line.ask("yielded", **told(call, progress)))
            return transport.resume(held(call).endpoint, call.request, tokens, progress)

        return resume

    def _lease(self, call: Call) -> KeeperLine | None:
        """Wait for the lease; at a remote endpoint there is nothing to wait for."""
        session = self._session
        if call.remote:
            call.granted(Grant(session.remote_endpoint(call.model)))
            return None
        if (run := current_run()) is not None:
            session.follow(run)
        try:
            line, told = session.lines.ask_keeping("lease", **session.want(call))
        except BaseException as error:
            trace_call(call, None, error)
            raise
        call.granted(Grant.from_wire(told))
        return line

    def _done(
        self,
        call: Call,
        line: KeeperLine | None,
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
                    self._session.lines.give(line)
            except KeepwarmError:
                line.close()
        trace_call(call, answer, error)

    @staticmethod
    def _explained(call: Call, line: KeeperLine | None, error: KeepwarmError) -> KeepwarmError:
        """A broken connection to a local engine, with the keeper's account of what happened."""
        if line is None or not isinstance(error, EngineDied):
            return error
        grant = held(call)
        try:
            told = line.ask("diagnose", engine=grant.engine, generation=grant.generation)
        except KeepwarmError as gone:
            return gone
        return error_from_wire(told["death"]) if told["death"] else error


def spent(answer: Reply | EmbeddingReply | None) -> dict[str, Any]:
    """What the keeper learns from a finished request: the engine's own figures, where it has any."""
    timings = answer.timings if isinstance(answer, Reply) else None
    if timings is None:
        return {}
    figures = {
        "prompt_n": timings.prompt_n,
        "prompt_ms": timings.prompt_ms,
        "cache_n": timings.cache_n,
        "predicted_n": timings.predicted_n,
        "predicted_ms": timings.predicted_ms,
    }
    return {"spent": figures}


def held(call: Call) -> Grant:
    """The lease of a call that has one."""
    if call.grant is None:
        raise InternalError(f"the call of {call.model} has no lease")
    return call.grant
