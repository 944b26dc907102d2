"""HTTP clients that are bound to a lease: for the paths of a server that no verb has."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from typing import Any, Final, TypeVar, cast

import httpx

from backends.base import Endpoint
from backends.flows import run_blocking
from backends.openai.answers.foreign_errors import refused
from backends.openai.connections.bounds import Timeouts
from backends.openai.connections.connecting import pool_settings
from backends.openai.exchange import api_key, secrets_of
from budget.errors import (
    DeadlineExceeded,
    EndpointError,
    EndpointUnavailable,
    EngineDied,
    EngineTimeout,
    InvalidRequest,
    KeepwarmError,
    error_from_wire,
)
from shim.calls.call import Call
from shim.calls.leased import Leases
from shim.calls.streaming.interruption import taken_back
from shim.calls.streaming.read_streams import reading_place, remember

_UNSENDABLE: Final = (httpx.InvalidURL, UnicodeError)
_UNWRITABLE: Final = (*_UNSENDABLE, ValueError, TypeError, RecursionError)
"""What httpx raises for arguments of which it makes no request: a set or NaN in `json`, for instance."""
_WAITS: Final = ("connect", "read", "write", "pool")


class _Key(httpx.Auth):
    """Sends an endpoint's key to that endpoint alone, wherever a request or a redirect leads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._origin = _origin(httpx.URL(endpoint.base_url))
        self._key = api_key(endpoint)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the key to a request of the endpoint."""
        if self._key and _origin(request.url) == self._origin:
            request.headers.setdefault("Authorization", f"Bearer {self._key}")
        yield request


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


class _Lease:
    """The lease of a client, given back once."""

    def __init__(self, leases: Leases, call: Call) -> None:
        self._leases = leases
        self._call = call
        self._held = True
        self._lost: KeepwarmError | None = None
        # Threads may share a client; its connection to the keeper serves one at a time.
        self._keeper = threading.Lock()
        self.read_at: object = None
        self.endpoint = call.held.endpoint

    @property
    def lease(self) -> str | None:
        """Its number; None once it is given back, and for a remote model."""
        grant = self._call.grant
        return None if grant is None or not self._held else grant.lease

    def used(self) -> None:
        """Note that this code uses the client: a call of its own would wait for it, as for a stream."""
        if (place := reading_place()) != self.read_at:
            self.read_at = place
            remember(self)

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of the client, but for its transport."""
        endpoint = self.endpoint
        times = self._call.limits.get("timeouts") or Timeouts()
        answer_s = None if times.answer_s == math.inf else times.answer_s
        return {
            "timeout": httpx.Timeout(answer_s, connect=times.connect_s),
            "base_url": endpoint.base_url,
            "auth": _Key(endpoint),
            "verify": pool_settings(endpoint)["ssl_context"],
            "trust_env": not endpoint.is_ours,
            "headers": {"User-Agent": "keepwarm"},
        }

    def bound(self, request: httpx.Request) -> None:
        """Bound the waits of a request by the deadline of the call.

        Raises:
            DeadlineExceeded: the call has no time left.
            InvalidRequest: it is for another host than the model's, or its client is closed.
            KeepwarmError: the keeper is gone, or took the lease back, as the error says.
        """
        if not self._held:
            raise self.misused()
        self._check_lease()
        self.used()
        if not self._is_here(request):
            raise InvalidRequest(
                f"The client of {self._call.model} is for {self.endpoint.place} alone, and was asked for"
                f" {secrets_of(self.endpoint).quote(str(request.url))}.",
                hint="Give a path of the model's server; use a client of your own for other hosts.",
                model=self._call.model,
            )
        left_s = self._left_s()
        if left_s <= 0:
            raise self._late()
        if left_s < math.inf:
            waits = request.extensions.get("timeout", {})
            bounds = {name: min(left_s, waits.get(name) or left_s) for name in _WAITS}
            request.extensions = {**request.extensions, "timeout": bounds}

    def _check_lease(self) -> None:
        """Hear what the keeper has said meanwhile: without its lease a request would disturb others."""
        connection = self._call.connection
        if self._lost is None and connection is not None and self._keeper.acquire(blocking=False):
            try:
                self._lost = taken_back(self._call, connection.notices())
            finally:
                self._keeper.release()
        if self._lost is not None:
            raise error_from_wire(self._lost.to_wire())

    def _left_s(self) -> float:
        deadline = self._call.limits.get("deadline")
        return math.inf if deadline is None else deadline - time.monotonic()

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self.endpoint.place} did not answer before the deadline.",
            hint="Give the call a longer deadline_s.",
            model=self._call.model,
        )

    def _is_here(self, request: httpx.Request) -> bool:
        return _origin(request.url) == _origin(httpx.URL(self.endpoint.base_url))

    def misused(self) -> InvalidRequest:
        """The error of a client that is used after its end, or entered twice."""
        return InvalidRequest(
            f"The client of {self._call.model} is closed, or was entered already.",
            hint="Ask for a new one: `with shim.http(...) as http`.",
            model=self._call.model,
        )

    def unsendable(self, error: Exception) -> InvalidRequest:
        """The error of a request that cannot be written down."""
        reason = secrets_of(self.endpoint).quote(str(error)).rstrip(".")
        return InvalidRequest(
            f"The request to {self._call.model} cannot be sent: {reason}.",
            hint="Its path, parameters and headers have to be valid Unicode, and its `json` has to hold"
            " JSON's values.",
            model=self._call.model,
        )

    async def failure(self, error: httpx.RequestError) -> KeepwarmError:
        """The error of a failed request, with what the keeper knows of the engine."""
        reason = secrets_of(self.endpoint).quote(str(error) or type(error).__name__).rstrip(".")
        if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
            return self.unsendable(error)
        if not isinstance(error, httpx.TransportError):
            return EndpointError(f"What {self.endpoint.place} answered cannot be used: {reason}.")
        if isinstance(error, httpx.TimeoutException):
            slow = EngineTimeout(f"{self.endpoint.place} did not answer in time: {reason}.")
            return self._late() if self._left_s() <= 0 else slow
        if isinstance(error, httpx.ConnectError) and not self._is_here(error.request):
            return EndpointUnavailable(
                f"{error.request.url.host}, to which {self.endpoint.place} sent the request on, does not"
                f" answer: {reason}."
            )
        found = refused(self.endpoint, reason)
        if isinstance(found, EngineDied) and self._keeper.acquire(blocking=False):
            try:
                said: KeepwarmError = await self._leases.explained(self._call, found)
            finally:
                self._keeper.release()
            if said is not found:
                # The keeper says it once, and later requests have no lease either.
                self._lost = said
            return said
        return found

    def give_back(self, error: BaseException | None = None) -> None:
        """Give the lease back. Idempotent."""
        if self._held:
            self._held = False
            self._leases.ended(self._call, None, error)


class _Pieces(httpx.SyncByteStream):
    """The body of an answer that is read as it comes; where it breaks off, the error is keepwarm's."""

    def __init__(self, body: httpx.SyncByteStream, lease: _Lease) -> None:
        self._body, self._lease = body, lease

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except httpx.TransportError as error:
            raise run_blocking(self._lease.failure(error)) from error

    def close(self) -> None:
        """Close the answer."""
        self._body.close()


class _AsyncPieces(httpx.AsyncByteStream):
    """As `_Pieces`, for asyncio."""

    def __init__(self, body: httpx.AsyncByteStream, lease: _Lease) -> None:
        self._body, self._lease = body, lease

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except httpx.TransportError as error:
            raise await self._lease.failure(error) from error

    async def aclose(self) -> None:
        """Close the answer."""
        await self._body.aclose()


class HttpClient(httpx.Client):
    """An `httpx.Client` whose relative paths are those of a model. Closing it gives its lease back."""

    def __init__(self, leases: Leases, call: Call) -> None:
        self._lease = _Lease(leases, call)
        socket = self._lease.endpoint.socket_path
        settings = self._lease.settings()
        transport = httpx.HTTPTransport(uds=socket, verify=settings["verify"]) if socket else None
        super().__init__(transport=transport, **settings)

    def build_request(self, *args: Any, **options: Any) -> httpx.Request:
        """As httpx does.

        Raises:
            InvalidRequest: it cannot be written down.
        """
        try:
            return super().build_request(*args, **options)
        except _UNWRITABLE as error:
            raise self._lease.unsendable(error) from error

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """As httpx does; a failed request is an error of keepwarm's, and so is a body that breaks off.

        Raises:
            InvalidRequest: it is for another host, or cannot be written down.
            KeepwarmError: the engine ended, did not answer, or what it answered cannot be used.
        """
        self._lease.bound(request)
        try:
            answer = super().send(request, **options)
        except _UNSENDABLE as error:
            raise self._lease.unsendable(error) from error
        except httpx.RequestError as error:
            raise run_blocking(self._lease.failure(error)) from error
        if not answer.is_closed:
            answer.stream = _Pieces(cast("httpx.SyncByteStream", answer.stream), self._lease)
        return answer

    def __enter__(self) -> HttpClient:
        """As httpx does.

        Raises:
            InvalidRequest: it is closed, or was entered already.
        """
        try:
            super().__enter__()
        except RuntimeError as error:
            raise self._lease.misused() from error
        self._lease.used()
        return self

    def close(self) -> None:
        """Close its connections, and give the lease back. Idempotent."""
        super().close()
        self._lease.give_back()

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._lease.give_back(failure[1])


class AsyncHttpClient(httpx.AsyncClient):
    """As `HttpClient`, an `httpx.AsyncClient`."""

    def __init__(self, leases: Leases, call: Call) -> None:
        self._lease = _Lease(leases, call)
        socket = self._lease.endpoint.socket_path
        settings = self._lease.settings()
        transport = (
            httpx.AsyncHTTPTransport(uds=socket, verify=settings["verify"]) if socket else None
        )
        super().__init__(transport=transport, **settings)

    def build_request(self, *args: Any, **options: Any) -> httpx.Request:
        """As httpx does.

        Raises:
            InvalidRequest: it cannot be written down.
        """
        try:
            return super().build_request(*args, **options)
        except _UNWRITABLE as error:
            raise self._lease.unsendable(error) from error

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """As httpx does; a failed request is an error of keepwarm's, and so is a body that breaks off.

        Raises:
            InvalidRequest: it is for another host, or cannot be written down.
            KeepwarmError: the engine ended, did not answer, or what it answered cannot be used.
        """
        self._lease.bound(request)
        try:
            answer = await super().send(request, **options)
        except _UNSENDABLE as error:
            raise self._lease.unsendable(error) from error
        except httpx.RequestError as error:
            raise await self._lease.failure(error) from error
        if not answer.is_closed:
            answer.stream = _AsyncPieces(cast("httpx.AsyncByteStream", answer.stream), self._lease)
        return answer

    async def __aenter__(self) -> AsyncHttpClient:
        """As httpx does.

        Raises:
            InvalidRequest: it is closed, or was entered already.
        """
        try:
            await super().__aenter__()
        except RuntimeError as error:
            raise self._lease.misused() from error
        self._lease.used()
        return self

    async def aclose(self) -> None:
        """Close its connections, and give the lease back. Idempotent."""
        try:
            await super().aclose()
        finally:
            self._lease.give_back()

    async def __aexit__(self, *failure: Any) -> None:
        try:
            await super().__aexit__(*failure)
        finally:
            self._lease.give_back(failure[1])


class HttpStart:
    """A client that gets its lease when it is awaited or entered."""

    def __init__(self, start: Coroutine[Any, Any, AsyncHttpClient]) -> None:
        self._start = start
        self._client: AsyncHttpClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncHttpClient]:
        return self._start.__await__()

    async def __aenter__(self) -> AsyncHttpClient:
        self._client = await self._start
        return await self._client.__aenter__()

    async def __aexit__(self, *failure: object) -> None:
        assert self._client is not None
        await self._client.__aexit__(*failure)


_Client = TypeVar("_Client", HttpClient, AsyncHttpClient)


async def leased_client(kind: type[_Client], leases: Leases, call: Call) -> _Client:
    """A client, once its model is resident.

    Raises:
        KeepwarmError: the lease was refused.
    """
    await leases.lease(call)
    try:
        return kind(leases, call)
    except BaseException as error:
        leases.ended(call, None, error)
        raise
