"""Flows on a thread: run to their end in one step, or refused."""

from __future__ import annotations

import asyncio

import pytest

from backends.flows import BlockingStream, Stream, run_blocking
from budget.errors import InternalError


async def _double(number: int) -> int:
    return 2 * number


async def _sum(*numbers: int) -> int:
    return sum([await _double(number) for number in numbers])


def test_a_flow_that_never_suspends_needs_no_event_loop() -> None:
    """Flows of flows as well."""
    assert run_blocking(_sum(1, 2, 3)) == 12


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_what_a_flow_raises_comes_out_as_it_is(error: BaseException) -> None:
    """An interruption too, after the flow has cleaned up."""
    cleaned: list[bool] = []

    async def flow() -> None:
        try:
            raise error
        finally:
            cleaned.append(await _double(1) == 2)

    with pytest.raises(type(error)) as caught:
        run_blocking(flow())
    assert caught.value is error
    assert cleaned == [True]


def test_a_flow_that_suspends_is_an_error_of_ours_and_is_ended() -> None:
    """Nothing would ever wake it up; what it holds is given back."""
    given_back: list[bool] = []

    async def flow() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            given_back.append(True)

    with pytest.raises(InternalError, match="flow"):
        run_blocking(flow())
    assert given_back == [True]


class _Countdown(Stream[int]):
    def __init__(self, start: int) -> None:
        self.left = start
        self.closed = 0

    async def __anext__(self) -> int:
        if self.left == 0:
            raise StopAsyncIteration
        self.left -= 1
        return await _double(self.left)

    async def aclose(self) -> None:
        self.closed += 1


def test_a_stream_is_iterated_and_closed_on_a_thread() -> None:
    """Its end ends the loop, and the block closes it."""
    flows = _Countdown(3)
    with BlockingStream(flows) as stream:
        assert list(stream) == [4, 2, 0]
        assert next(stream, None) is None
        assert flows.closed == 0
    assert flows.closed == 1
