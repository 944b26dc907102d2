"""A timer's handler that raises while real engines answer, load and are waited for."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shim import Shim
from tests.processes import wait_until

pytestmark = pytest.mark.real


class MyError(Exception):
    """An error of the program's own."""


KINDS = [TimeoutError, OSError, ConnectionResetError, ValueError, MyError]


def _timed(call: Callable[[], object], error: Exception, after_s: float) -> BaseException:
    """What ends a call that is made again and again until a timer's handler raises an error."""

    def handler(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        while True:
            call()
    except Exception as raised:
        return raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _left(shim: Shim) -> list[Any]:
    """Leases and requests at the keeper."""
    told = shim.status()
    return [*(row["leases"] for row in told["engines"] if row["leases"]), *told["queue"]]


def test_what_a_timers_handler_raises_ends_the_call_and_nothing_else(
    tiny_models: dict[str, Path],
) -> None:
    """A program's own time-out, by the signal that such time-outs use; the next call is served."""
    config = {
        "budget": {"device": "host"},
        "models": {"a": {"path": str(tiny_models["producer"]), "context": 1024, "slots": 1}},
    }
    with Shim(config) as shim:

        def streamed() -> None:
            with shim.stream("a", "Hello.", max_tokens=500) as stream:
                list(stream)

        def queued() -> None:
            with shim.stream("a", "Hello.", max_tokens=500):
                shim.chat("a", "Hello.", max_tokens=500)

        calls: list[Callable[[], object]] = [
            lambda: shim.chat("a", "Hello.", max_tokens=500),
            streamed,
            queued,
        ]
        shim.chat("a", "Hello.", max_tokens=1)
        for call in calls:
            for kind in KINDS:
                error = kind("the handler's own")
                assert _timed(call, error, 0.1) is error
                assert wait_until(lambda: _left(shim) == []), (call, kind)
                assert shim.chat("a", "Hello.", max_tokens=1).usage.completion_tokens == 1
