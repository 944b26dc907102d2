"""The core under everything that can happen, in any order, while any part of it fails now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import rule

from budget import actions as act
from budget import events as ev
from budget.errors import InternalError
from budget.eviction.policies import DEFAULT_POLICY, POLICY_NAMES
from tests.budget.recovery.test_faults import METHODS
from tests.budget.test_machine import CoreMachine, drive


class Failure:
    """The one failure that is coming: some call of a method while the core handles an event."""

    def __init__(self) -> None:
        self.calls_left: int | None = None
        self.handling = False
        self.happened = 0

    def passes(self, what: str) -> None:
        """Raise, if this is the call."""
        if not self.handling or self.calls_left is None:
            return
        self.calls_left -= 1
        if self.calls_left < 0:
            self.calls_left = None
            self.happened += 1
            raise RuntimeError(what)


FAILURE = Failure()


def watched(part: type[Any], name: str) -> Callable[..., Any]:
    """A method that may be the one that fails."""
    original = getattr(part, name)

    def method(self: Any, *args: Any, **more: Any) -> Any:
        FAILURE.passes(f"{part.__name__}.{name} fails")
        return original(self, *args, **more)

    return method


@contextmanager
def everything_may_fail() -> Iterator[None]:
    """Every method of the core is watched."""
    originals = [(part, name, getattr(part, name)) for part, name in METHODS]
    for part, name in METHODS:
        setattr(part, name, watched(part, name))
    try:
        yield
    finally:
        for part, name, original in originals:
            setattr(part, name, original)


class FaultyMachine(CoreMachine):
    """As its base, which checks every invariant after each event; requests may hear `InternalError`."""

    policy = DEFAULT_POLICY

    def __init__(self) -> None:
        FAILURE.calls_left = None
        super().__init__()
        self.shell.may_fail = True
        self._handle = self.shell.core.handle
        self._send = self.shell.send
        self.shell.core.handle = self._handled  # type: ignore[method-assign]
        self.shell.send = self._sent  # type: ignore[method-assign]

    def _handled(self, event: ev.Event, now: float) -> list[act.Action]:
        FAILURE.handling = True
        try:
            return self._handle(event, now)
        finally:
            FAILURE.handling = False

    def _sent(self, event: ev.Event) -> list[act.Action]:
        """An event that cannot even be checked has changed nothing, and is sent once more."""
        try:
            return self._send(event)
        except InternalError as error:
            if "cannot be checked" not in error.message:
                raise
            self.shell.check()
            return self._send(event)

    @rule(calls=st.integers(0, 300))
    def something_will_fail(self, calls: int) -> None:
        """So many calls of the core's methods from now."""
        FAILURE.calls_left = calls

    def teardown(self) -> None:
        """Without a failure on the way: every request that is left ends."""
        FAILURE.calls_left = None
        super().teardown()


def test_the_core_holds_its_invariants_while_parts_of_it_fail() -> None:
    """Hundreds of failures at arbitrary calls: books balance, every request ends once, timers are set."""
    FAILURE.happened = 0
    with everything_may_fail():
        drive(FaultyMachine, 60)
    assert FAILURE.happened >= 100


@pytest.mark.full
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_the_core_holds_its_invariants_for_long_while_parts_of_it_fail(policy: str) -> None:
    """Under every policy, other steps each time."""
    with everything_may_fail():
        drive(type("AnyFaultyMachine", (FaultyMachine,), {"policy": policy}), 1000, seed=1)
