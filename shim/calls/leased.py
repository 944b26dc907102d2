"""The lease of a call: wait for it, perhaps yield it and go on, end it with the call."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeVar

from backends.base import Endpoint
from backends.flows import Stream
from backends.openai.protocol import Delta
from backends.openai.transport import Transport
from backends.python.worker_calls import WorkerCalls
from budget.errors import (
    EndpointUnavailable,
    EngineDied,
    KeepwarmError,
    OutOfMemory,
    PromptTooLong,
    error_from_wire,
)
from budget.footprint import HOST
from shim.calls.call import Call
from shim.calls.lifetime.forgotten_shims import Owner
from shim.calls.routing.routes import CHECK_S, fails_over, takes_over
from shim.calls.session import Session
from shim.calls.streaming.interruption import (
    FullContext,
    back,
    outgoing,
    taken_back,
    to_yield,
    wanted_back,
    yield_fields,
)
from shim.calls.streaming.read_streams import STREAMS_READ, leases_here
from shim.calls.tracing import trace_call
from shim.replies import Answer
from shim.wire.keeper_connection import ConnectionPool
from shim.wire.silence import EXPLAIN_S

_SAID = {
    "booked_bytes": "booked for it",
    "ceiling_bytes": "the most that it may take",
    "found_bytes": "what it takes now",
}


_T = TypeVar("_T")
CHECK_PATH: Final = "/v1/models"
SERVER_ERROR: Final = 500
UNEXPLAINED = (EngineDied, OutOfMemory)
"""Errors of a connection to an engine, of which the keeper knows more."""


class Leases:
    """The leases of one session's calls.

    Args:
        session: what is configured.
        connections: the way to the keeper, a thread's or an event loop's.
        transport: the way to engines, of the same kind.
        workers: the way to Python workers, of the same kind.
        owner: kept as long as these leases, so that an open stream keeps its session open.
    """

    def __init__(
        self,
        session: Session,
        connections: ConnectionPool,
        transport: Transport,
        workers: WorkerCalls,
        owner: Owner | None = None,
    ) -> None:
        self._session = session
        self._owner = owner
        self._connections = connections
        self.transport = transport
        self.workers = workers

    async def lease(self, call: Call) -> Endpoint:
        """Wait for a lease, and return the endpoint of the request. A remote endpoint needs no lease.

        Raises:
            KeepwarmError: the lease was refused.
        """
        session, wants = self._session, call.wants
        while True:
            call.connection = None  # of the lease before, which is given back
            try:
                if call.pause_s:
                    pause_s, call.pause_s = call.pause_s, 0.0
                    await self.transport.pools.to(call.held.endpoint).pause(pause_s)
                if session.routes.stability and session.routes.unstable(call.serving):
                    session.takes_over(call)
                if call.remote:
                    return await self._routed(call)
                if call.run is not None:
                    session.follow(call.run)
                if call.grant is not None and (deadline := call.limits.get("deadline")) is not None:
                    # It had a lease before, and its deadline is that of the whole call.
                    wants["deadline_s"] = max(0.0, deadline - time.monotonic())
                if STREAMS_READ.get() or "inside" in wants:
                    wants["inside"] = leases_here()
                call.connection, granted = await self._connections.ask_keeping("lease", **wants)
                return call.granted(granted)
            except BaseException as error:
                if call.connection is not None:
                    call.connection.close()  # the call does not know which lease it holds
                    call.connection = None
                if isinstance(error, KeepwarmError) and self._moves_on(call, error):
                    continue
                session.past.append(call.past(None, error))
                trace_call(call, None, error)
                raise

    async def _routed(self, call: Call) -> Endpoint:
        """The endpoint of a remote model; of several, one that is well as far as that is known.

        Raises:
            KeepwarmError: none can take the request.
        """
        session = self._session
        entries = session.config.models[call.serving].endpoints
        while True:
            if not entries:
                endpoint, check = session.remote_endpoint(call.serving), False
            else:
                pick = session.routes.pick(call.serving, entries, call.passed)
                call.route, check = (entries, pick.place), pick.check
                endpoint = session.remote_endpoint(call.serving, entries[pick.place])
            if not check or await self._is_well(call, endpoint):
                return call.routed(endpoint)

    async def _is_well(self, call: Call, endpoint: Endpoint) -> bool:
        """Whether an endpoint that failed before answers at all."""
        failure: BaseException | None = None
        try:
            status = await self.transport.probe(endpoint, CHECK_PATH, within_s=CHECK_S)
            if status < SERVER_ERROR:
                return True
            failure = EndpointUnavailable(f"{endpoint.place} answered {status}.")
        except KeepwarmError as error:
            failure = error
        except BaseException as error:
            failure = error
            raise
        finally:
            if failure is not None:
                self._left(call, failure)
        return False

    def _left(self, call: Call, error: BaseException | None) -> None:
        """Note how a request went at one of several endpoints."""
        if call.route is None:
            return
        entries, place = call.route
        self._session.routes.ended(entries, place, error)
        if error is not None:
            call.route = None
            call.passed.append(place)

    def _moves_on(self, call: Call, error: KeepwarmError) -> bool:
        """Whether another endpoint, or the model's fallback, gets a request that failed like this."""
        if not call.can_begin_anew:
            return False
        session = self._session
        entries = session.config.models[call.serving].endpoints if call.remote else ()
        here = call.route[1] if call.route is not None else -1
        others = set(range(len(entries))) - {here, *call.passed}
        if call.route is not None and others and fails_over(error):
            call.moves(error)
            return True
        if takes_over(error) and session.takes_over(call):
            call.moves(error)
            return True
        return False

    async def source(
        self, call: Call, deltas: Sequence[Delta], source: Stream[Delta]
    ) -> Stream[Delta]:
        """The source of the next piece, asked for between two pieces. Yields the lease if it has to.

        Raises:
            KeepwarmError: the keeper is gone, it took the lease back, or the answer could not go on.
        """
        connection = call.connection
        if connection is None or not (notices := connection.notices()):
            return source
        if (error := taken_back(call, notices)) is not None:
            raise await self.explained(call, error) if isinstance(error, EngineDied) else error
        if call.runs_on or not call.preemptible or not wanted_back(call, notices):
            return source
        progress = to_yield(call, deltas)
        if progress is None:
            call.runs_on = True
            return source
        await source.aclose()
        try:
            tokens = back(call, await connection.ask("yielded", **yield_fields(call, progress)))
        except KeepwarmError:
            raise
        except BaseException:
            connection.close()  # the call does not know which lease it holds
            raise
        resume, limits = self.transport.resume, call.limits
        try:
            return await resume(call.held.endpoint, call.request, tokens, progress, **limits)
        except PromptTooLong:
            # Tokenised again, the same text can have more tokens than were generated.
            return FullContext(progress)

    async def begin(self, call: Call) -> Stream[Delta]:
        """The stream of a call's engine, from its first piece on.

        Raises:
            KeepwarmError: the call has ended.
        """
        while True:
            endpoint = await self.lease(call)
            source = self.transport.stream(endpoint, outgoing(call), **call.limits)
            if (begun := await self._begun(call, source)) is not None:
                return begun

    async def begin_call(self, call: Call, payload: Mapping[str, Any]) -> Stream[Any]:
        """The stream of a Python model's results, from its first one on.

        Raises:
            KeepwarmError: the call has ended.
        """
        while True:
            endpoint = await self.lease(call)
            source = self.workers.stream(endpoint, payload, **call.limits)
            if (begun := await self._begun(call, source)) is not None:
                return begun

    async def rest(self, call: Call, said: Sequence[Delta]) -> Stream[Delta] | None:
        """The rest of a broken-off answer, under a new lease; None if the answer has to begin anew.

        Raises:
            KeepwarmError: the call has ended.
        """
        progress = to_yield(call, said) if said and call.preemptible else None
        if progress is None:
            return None
        call.runs_on = False
        endpoint = await self.lease(call)
        source = self.transport.resume(endpoint, call.request, None, progress, **call.limits)
        try:
            return await self._begun(call, source)
        except PromptTooLong:
            # Tokenised again, the same text can have more tokens than were generated.
            return None

    async def _begun(self, call: Call, source: Awaitable[Stream[_T]]) -> Stream[_T] | None:
        """A stream that has begun; None where its call begins anew. Else the lease is back."""
        try:
            return await source
        except KeepwarmError as error:
            if (failure := await self.failed(call, error)) is not None:
                raise_explained(failure, error)
            return None
        except BaseException as error:
            self.ended(call, None, error)
            raise

    async def explained(self, call: Call, error: EngineDied | OutOfMemory) -> KeepwarmError:
        """The keeper's account of an engine's failure: its death, or the bytes that it takes."""
        connection = call.connection
        if connection is None:
            return error
        grant = call.held
        where = {"engine": grant.engine, "generation": grant.generation}
        if error.facts.get("reached", True):
            where["lease"] = grant.lease
        try:
            said = await connection.ask("diagnose", within_s=EXPLAIN_S, **where)
            if said["death"]:
                return error_from_wire(said["death"])
            if isinstance(error, OutOfMemory):
                return with_bytes(error, (said.get("bytes") or {}).get(HOST))
            return taken_back(call, connection.notices()) or error
        except KeepwarmError as gone:
            return gone if isinstance(error, EngineDied) else error

    async def failed(self, call: Call, error: KeepwarmError) -> KeepwarmError | None:
        """End the lease of a call that failed; returns its error, None where it begins anew."""
        failure: BaseException = error
        try:
            if isinstance(error, UNEXPLAINED):
                failure = error = await self.explained(call, error)
                if isinstance(error, EngineDied):
                    self._session.routes.died(call.serving)
            return None if call.begins_anew(error) or self._moves_on(call, error) else error
        except BaseException as interrupt:
            failure = interrupt
            raise
        finally:
            self.ended(call, None, failure)

    def ended(self, call: Call, answer: Answer | None, error: BaseException | None) -> None:
        """Give the lease and the connection back; an interrupted call closes it instead.

        The call is on the trace once it has ended, and not before it is sent anew.
        """
        connection, grant = call.connection, call.grant
        if connection is not None and grant is not None:
            try:
                interrupted = error is not None and not isinstance(error, Exception)
                if interrupted or not connection.is_usable:
                    connection.close()
                else:
                    spent = call.spent(answer, error)
                    said = {"spent": spent} if spent else {}
                    connection.tell("end", lease=grant.lease, **said)
            except KeepwarmError:
                connection.close()
            except BaseException:
                connection.close()
                raise
            else:
                self._connections.give(connection)
        if call.route is not None:
            self._left(call, error)
        if error is not None and (error is call.ended_by or error is call.moved_from):
            return
        self._session.past.append(call.past(answer, error))
        if call.run is not None:
            trace_call(call, answer, error)


def raise_explained(failure: KeepwarmError, error: KeepwarmError) -> NoReturn:
    """Raise the error of a call, which may say more than the one that it met."""
    if failure is error:
        raise failure
    raise failure from error


def with_bytes(error: OutOfMemory, found: Mapping[str, int | None] | None) -> OutOfMemory:
    """The error of an engine that was refused memory, with the keeper's figures of that engine.

    Args:
        error: what the engine answered, which names no bytes.
        found: `found_bytes`, `booked_bytes` and `ceiling_bytes` of the host; None where the keeper has
            no such engine any more.
    """
    if found is None:
        return error
    told = {name: amount for name, amount in found.items() if amount is not None}
    words = [f"{told[name]} bytes are {said}" for name, said in _SAID.items() if name in told]
    return OutOfMemory(
        f"{error.message} Of {HOST}, {', '.join(words)}.",
        hint=error.hint,
        **{**error.facts, "device": HOST, **told},
    )
