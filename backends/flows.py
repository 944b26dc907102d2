"""Flows: control flow that is written once, as coroutines, for callers on threads and on event loops.

A flow does its I/O through primitives that it is given. They come in two kinds. Those of an event
loop suspend. Those of a thread are `async def` as well, but block and never suspend; a flow over them
has run to its end when its first step is done, and no event loop is needed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Self, TypeVar

from budget.errors import InternalError

_T = TypeVar("_T")


def run_blocking(flow: Coroutine[Any, Any, _T]) -> _T:
    """The result of a flow over a thread's primitives; its exceptions are raised unchanged.

    Raises:
        InternalError: the flow suspended, so it was given an event loop's primitives.
    """
    try:
        flow.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    flow.close()
    raise InternalError(f"{flow!r} waits for an event loop where there is none")


class Stream(AsyncIterator[_T]):
    """An iterator that holds something until it is closed. Use it as a context manager, or close it."""

    @abstractmethod
    async def __anext__(self) -> _T: ...

    @abstractmethod
    async def aclose(self) -> None:
        """Release the resource. Idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_failure: object) -> None:
        await self.aclose()


class BlockingStream(Iterator[_T]):
    """A stream over a thread's primitives, for that thread's `for` and `with`."""

    def __init__(self, flows: Stream[_T]) -> None:
        self._flows = flows

    def __next__(self) -> _T:
        try:
            return run_blocking(self._flows.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """Release the resource. Idempotent."""
        run_blocking(self._flows.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()
