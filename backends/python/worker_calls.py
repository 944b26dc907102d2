"""The data plane of Python workers: calls and streams of results, as flows over links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backends.base import Endpoint
from backends.flows import Stream
from backends.openai.answers.foreign_errors import broken, refused
from backends.openai.connections.bounds import Bounds, Timeouts
from backends.python.frames import BadFrame, Unsendable
from backends.python.links import Link, LoopLink, OpenLinks, ThreadLink
from budget.errors import EndpointError, InvalidRequest, KeepwarmError, WorkerError

_FIRST: Final = "the first item"
_NEXT: Final = "the next item"


class WorkerCalls:
    """Calls of Python workers from threads, or from event loops.

    Each call has a connection of its own. Closing it tells the worker that nothing waits any more: a
    generator is closed at its next item, and a call that has not begun is dropped.

    Args:
        kind: the kind of link.
    """

    def __init__(self, kind: type[ThreadLink] | type[LoopLink]) -> None:
        self._kind = kind
        self._open = OpenLinks()

    async def call(
        self,
        endpoint: Endpoint,
        payload: Mapping[str, Any],
        *,
        timeouts: Timeouts | None = None,
        deadline: float | None = None,
    ) -> Any:
        """The result of one call.

        Raises:
            WorkerError: the model's code raised.
            InvalidRequest: the payload cannot be sent.
            EngineDied: the worker has ended.
        """
        limits = timeouts or Timeouts()
        bounds = Bounds(endpoint, limits, deadline, limits.answer_s)
        link = await self._asked(endpoint, "call", payload, bounds)
        try:
            return await _heard(endpoint, link, bounds, "result")
        finally:
            link.close()

    async def stream(
        self,
        endpoint: Endpoint,
        payload: Mapping[str, Any],
        *,
        timeouts: Timeouts | None = None,
        deadline: float | None = None,
    ) -> Stream[Any]:
        """The items of a generator as they come; a call that returns something else is one item.

        Raises:
            KeepwarmError: as `call`, here or while iterating.
        """
        limits = timeouts or Timeouts()
        bounds = Bounds(endpoint, limits, deadline, limits.stream_s)
        bounds.begin(_FIRST, limits.first_token_s)
        link = await self._asked(endpoint, "stream", payload, bounds)
        bounds.paused()
        return _Items(endpoint, link, bounds)

    async def _asked(
        self, endpoint: Endpoint, op: str, payload: Mapping[str, Any], bounds: Bounds
    ) -> Link:
        try:
            link = await self._kind.connect(endpoint.socket_path or "", bounds.left_s)
        except OSError as error:
            raise refused(endpoint, error.strerror or str(error)) from error
        try:
            self._open.add(link)
            await link.send(op, payload, bounds.left_s)
        except Unsendable as error:
            link.close()
            raise InvalidRequest(f"{error}.", model=endpoint.name) from None
        except OSError as error:
            link.close()
            raise broken(endpoint, error.strerror or str(error)) from error
        except BaseException:
            link.close()
            raise
        return link

    def close(self) -> None:
        """End the calls that run, from any thread."""
        self._open.shut_down()


class _Items(Stream[Any]):
    """The items of one call."""

    def __init__(self, endpoint: Endpoint, link: Link, bounds: Bounds) -> None:
        self._endpoint = endpoint
        self._link = link
        self._bounds = bounds
        self._ended = False

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            self._bounds.waiting()
            item = await _heard(self._endpoint, self._link, self._bounds, "item")
        except BaseException:
            await self.aclose()
            raise
        self._bounds.expect(_NEXT, self._bounds.timeouts.between_tokens_s)
        self._bounds.paused()
        return item

    async def aclose(self) -> None:
        self._ended = True
        self._link.close()


async def _heard(endpoint: Endpoint, link: Link, bounds: Bounds, wanted: str) -> Any:
    """The value of the next frame; StopAsyncIteration at the end of a stream."""
    try:
        op, value = await link.receive(bounds.left_s)
    except EOFError:
        raise broken(endpoint, "it closed the connection") from None
    except OSError as error:
        raise broken(endpoint, error.strerror or str(error)) from error
    except BadFrame as error:
        raise EndpointError(f"{endpoint.place} sent something else than frames: {error}.") from None
    if op == wanted:
        return value
    if op == "end":
        raise StopAsyncIteration
    raise _failure(endpoint, value if op == "error" and isinstance(value, dict) else {"type": op})


def _failure(endpoint: Endpoint, told: Mapping[str, Any]) -> KeepwarmError:
    kind, message = str(told.get("type")), str(told.get("message", ""))
    return WorkerError(
        f"{endpoint.name} raised {kind}: {message}",
        hint="The model stays loaded. The traceback is in `traceback`.",
        model=endpoint.name,
        type=kind,
        traceback=str(told.get("traceback", "")),
    )
