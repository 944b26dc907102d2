"""The interfaces that flows need of connections, for threads and for event loops."""

from __future__ import annotations

from typing import Protocol

from backends.base import Endpoint
from backends.openai.exchange import Exchange, Headers, Route


class Answer(Protocol):
    """The response to one request. Its methods raise one of `HTTP_ERRORS`."""

    status: int
    headers: Headers

    async def chunk(self) -> bytes | None:
        """The next bytes of the body; None at its end."""
        ...

    async def close(self) -> None:
        """Give the connection back, or close it when the body is unfinished. Idempotent."""
        ...


class Pool(Protocol):
    """The connections to one endpoint."""

    route: Route

    async def send(self, exchange: Exchange) -> Answer:
        """One attempt; returns when the headers of the response are here.

        Raises:
            Exception: one of `HTTP_ERRORS`: it failed.
            KeepwarmError: a bound of the request is reached.
        """
        ...

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt."""
        ...


class Pools(Protocol):
    """The connections of a thread or an event loop, by endpoint."""

    def to(self, endpoint: Endpoint) -> Pool:
        """The connections to an endpoint, made when they are first asked for."""
        ...

    async def close(self) -> None:
        """Close every idle connection."""
        ...
