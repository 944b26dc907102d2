"""Network connections that ask a request's `Bounds` before every wait, and count every byte there.

httpcore passes a request's time-outs (`extensions["timeout"]`) untouched to the connection's `read` and
`write` and to what connects. The request puts its `Bounds` there. This is the one place below HTTP that
sees everything: interim answers, headers, chunk borders, TLS.

httpcore has one interface for threads and one for event loops, so each class here stands twice. A flow
(`backends.flows`) under both would add a coroutine to each read, and no fewer lines: what the two share
are three lines a method, which call `Bounds`.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

import httpcore
from httpcore import SOCKET_OPTION

from backends.flows import run_blocking
from backends.machine.callers_errors import raise_as_it_is, raise_callers
from backends.openai.connections.bounds import Bounds
from backends.openai.connections.open_streams import OpenStreams
from backends.openai.connections.resolving import RESOLVER, Addresses

_WRITE_BYTES: Final = 16 << 10
_BUSY_PAUSE_S: Final = 0.005
_NEXT_ADDRESS_S: Final = 1.0
"""After this time without an answer, the next of several addresses is tried."""

_FAILED: Final = (
    httpcore.ReadError,
    httpcore.ReadTimeout,
    httpcore.WriteError,
    httpcore.WriteTimeout,
)

_Stream = TypeVar("_Stream")


def _say_more(error: Exception, bounds: Bounds) -> None:
    """Raise what a failed wait means: the caller's own error, or that the time is over; else return."""
    raise_callers(error)
    if isinstance(error, httpcore.ReadTimeout | httpcore.WriteTimeout):
        if error.__cause__ is not None and bounds.has_time():
            raise_as_it_is(error.__cause__)
        raise bounds.expired() from None


@contextlib.contextmanager
def _connecting() -> Iterator[None]:
    """An error of the caller's inside comes out as it is."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
        raise_callers(exc)
        raise


async def _first_of(
    addresses: Addresses, end_s: float, connect: Callable[[str, float], Awaitable[_Stream]]
) -> _Stream:
    """A connection to the first address that takes one before a monotonic second."""
    for address in addresses[:-1]:
        left_s = max(end_s - time.monotonic(), 0.001)
        try:
            return await connect(address, min(left_s, _NEXT_ADDRESS_S))
        except (httpcore.ConnectError, httpcore.ConnectTimeout):
            continue
    return await connect(addresses[-1], max(end_s - time.monotonic(), 0.001))


class BoundedStream(httpcore.NetworkStream):
    """A thread's connection."""

    def __init__(self, inner: httpcore.NetworkStream, opened: OpenStreams) -> None:
        self._inner = inner
        self._opened = opened
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]
        opened.add(self)

    def read(self, max_bytes: int, timeout: object = None) -> bytes:
        """The next bytes, as soon as there are any."""
        assert isinstance(timeout, Bounds)
        try:
            data = self._inner.read(max_bytes, timeout.left_s())
        except _FAILED as exc:
            _say_more(exc, timeout)
            raise
        timeout.took(len(data))
        return data

    def write(self, buffer: bytes, timeout: object = None) -> None:
        """Send all bytes in parts. A slow receiver gets one limit for all of them."""
        assert isinstance(timeout, Bounds)
        try:
            for start in range(0, len(buffer), _WRITE_BYTES):
                self._inner.write(buffer[start : start + _WRITE_BYTES], timeout.left_s())
        except _FAILED as exc:
            _say_more(exc, timeout)
            raise

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: object = None,
    ) -> httpcore.NetworkStream:
        """The same connection, encrypted from here on."""
        assert isinstance(timeout, Bounds)
        with _connecting():
            stream = self._inner.start_tls(ssl_context, server_hostname, timeout.connect_s())
        timeout.opened = opened = BoundedStream(stream, self._opened)
        return opened


class BoundedBackend(httpcore.NetworkBackend):
    """Connects for threads."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()
        self.opened = OpenStreams()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: object = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A TCP connection."""
        assert isinstance(timeout, Bounds)
        limit_s = timeout.connect_s()
        end_s = time.monotonic() + limit_s
        addresses = RESOLVER.find((host, port), timeout, limit_s)

        async def connect(address: str, within_s: float) -> httpcore.NetworkStream:
            with _connecting():
                return self._inner.connect_tcp(
                    address, port, within_s, local_address, socket_options
                )

        stream = run_blocking(_first_of(addresses, end_s, connect))
        timeout.opened = opened = BoundedStream(stream, self.opened)
        return opened

    def connect_unix_socket(
        self,
        path: str,
        timeout: object = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to a Unix socket; waits while its queue of connections is full."""
        assert isinstance(timeout, Bounds)
        limit_s = timeout.connect_s()
        end_s = time.monotonic() + limit_s
        while True:
            try:
                with _connecting():
                    stream = self._inner.connect_unix_socket(path, limit_s, socket_options)
                timeout.opened = opened = BoundedStream(stream, self.opened)
                return opened
            except httpcore.ConnectError as exc:
                # A socket with a time-out does not wait for a place in the queue, but fails with EAGAIN.
                full = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EAGAIN
                if not full:
                    raise
            limit_s = end_s - time.monotonic()
            if limit_s <= 0:
                raise timeout.connecting_expired()
            self.sleep(_BUSY_PAUSE_S)


class AsyncBoundedStream(httpcore.AsyncNetworkStream):
    """An event loop's connection."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, opened: OpenStreams) -> None:
        self._inner = inner
        self._opened = opened
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]
        opened.add(self)

    async def read(self, max_bytes: int, timeout: object = None) -> bytes:
        """The next bytes, as soon as there are any."""
        assert isinstance(timeout, Bounds)
        try:
            data = await self._inner.read(max_bytes, timeout.left_s())
        except _FAILED as exc:
            _say_more(exc, timeout)
            raise
        timeout.took(len(data))
        return data

    async def write(self, buffer: bytes, timeout: object = None) -> None:
        """Send it all."""
        assert isinstance(timeout, Bounds)
        try:
            await self._inner.write(buffer, timeout.left_s())
        except _FAILED as exc:
            _say_more(exc, timeout)
            raise

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: object = None,
    ) -> httpcore.AsyncNetworkStream:
        """The same connection, encrypted from here on."""
        assert isinstance(timeout, Bounds)
        with _connecting():
            stream = await self._inner.start_tls(ssl_context, server_hostname, timeout.connect_s())
        timeout.opened = opened = AsyncBoundedStream(stream, self._opened)
        return opened


class AsyncBoundedBackend(httpcore.AsyncNetworkBackend):
    """Connects for event loops."""

    def __init__(self) -> None:
        self._inner = httpcore.AnyIOBackend()
        self.opened = OpenStreams()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: object = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A TCP connection."""
        assert isinstance(timeout, Bounds)
        limit_s = timeout.connect_s()
        end_s = time.monotonic() + limit_s
        addresses = await RESOLVER.afind((host, port), timeout, limit_s)

        async def connect(address: str, within_s: float) -> httpcore.AsyncNetworkStream:
            with _connecting():
                return await self._inner.connect_tcp(
                    address, port, within_s, local_address, socket_options
                )

        stream = await _first_of(addresses, end_s, connect)
        timeout.opened = opened = AsyncBoundedStream(stream, self.opened)
        return opened

    async def connect_unix_socket(
        self,
        path: str,
        timeout: object = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to a Unix socket."""
        assert isinstance(timeout, Bounds)
        limit_s = timeout.connect_s()
        with _connecting():
            stream = await self._inner.connect_unix_socket(path, limit_s, socket_options)
        timeout.opened = opened = AsyncBoundedStream(stream, self.opened)
        return opened

    async def sleep(self, seconds: float) -> None:
        """Sleep, for httpcore's pauses between two attempts to connect."""
        await self._inner.sleep(seconds)
