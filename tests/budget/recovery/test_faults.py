"""A failure inside the core: the event takes effect, the books balance, and the next are served.

Every method of the core fails once, at each of its calls in a scripted workload that exercises all
of them. What is asserted is the same each time: nothing raises, every table agrees after every
event, every request ends, and afterwards every model is served.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any, ClassVar

import pytest

from budget import actions as act
from budget import events as ev
from budget.admission.admission import Admission
from budget.admission.fits import Fitting
from budget.admission.preemption import Preemption
from budget.admission.prefetch import Prefetcher
from budget.admission.scheduler import Scheduler
from budget.admission.state import CoreState
from budget.admission.timers import Timers
from budget.books.claims import Claims
from budget.books.declared_uses import DeclaredUses
from budget.books.engines import EngineRecord, EngineSpec, ModelSpec, PlacementOption
from budget.books.ledger import Books, Ledger
from budget.books.pin_holders import PinHolders
from budget.books.queue import Queue, Waiting, WaitList
from budget.books.residents import Residents
from budget.errors import InternalError
from budget.eviction.forecast.expert_books import ExpertBooks
from budget.eviction.forecast.experts import Contest
from budget.eviction.forecast.forecaster import Forecaster
from budget.eviction.forecast.guard import Guard
from budget.eviction.forecast.histories import Histories
from budget.eviction.forecast.lookahead import Lookahead
from budget.eviction.forecast.rates import Rates
from budget.eviction.forecast.transitions import Transitions
from budget.eviction.policies import make_policy
from budget.eviction.policies.forecast import Forecast
from budget.handlers.client_requests import Requests
from budget.handlers.engine_events import EngineEvents
from tests.budget.machine import Shell, engine, model, shell_of

PARTS: tuple[type[Any], ...] = (
    Forecast, Forecaster, Contest, Guard, ExpertBooks, Lookahead, Rates, Histories, Transitions,
    Prefetcher, Preemption, Scheduler, Admission, Fitting, Claims, CoreState, Residents, DeclaredUses,
    Books, Ledger, Timers, Queue, WaitList, Waiting, PinHolders, EngineRecord, EngineEvents, Requests,
)  # fmt: skip
OUTSIDE = {
    "pump", "_bring_to_rest", "tell_load", "tell_unload", "imbalances", "rebuild", "clear", "requests_of",
    "_give_up", "_give_up_one",
    "must_be_possible", "must_be_able_to", "must_be_estimable", "_impossible", "adopt", "to_arm",
    "attach", "export_state", "import_state", "_take_in", "_scaled", "view", "tell", "next_by_name",
    "DeclaredUses.declared", "PinHolders.get", "fits_beside", "Fitting.together",
}  # fmt: skip
"""Methods that are the net itself, that refuse an event before anything changes, that a core is made
or kept with, or that only tests, snapshots and questions call."""


def methods() -> list[tuple[type[Any], str]]:
    """Every method of every part, found in the code, so that none is forgotten."""
    return [
        (part, name)
        for part in PARTS
        for name, found in vars(part).items()
        if isinstance(found, FunctionType)
        and not name.startswith("__")
        and not (name.startswith("_admit_") and part is not Scheduler)
        and not {name, f"{part.__name__}.{name}"} & OUTSIDE
        and not inspect.isgeneratorfunction(inspect.unwrap(found))
    ]


@dataclass
class Calls:
    """How often a method was called while a core handled an event."""

    count: int = 0
    counting: ClassVar[bool] = False


@contextmanager
def failing(part: type[Any], name: str, at: int) -> Iterator[Calls]:
    """The call of that number raises, before it has done anything."""
    original = getattr(part, name)
    calls = Calls()

    def method(self: Any, *args: Any, **more: Any) -> Any:
        calls.count += calls.counting
        if calls.counting and calls.count == at:
            raise RuntimeError(f"{part.__name__}.{name} fails at its call {at}")
        return original(self, *args, **more)

    setattr(part, name, method)
    try:
        yield calls
    finally:
        setattr(part, name, original)


ENGINES = (
    EngineSpec(
        "a",
        (
            PlacementOption((("gpu", 50),), 1.0),
            PlacementOption((("gpu", 30), ("host", 30)), 2.0, 1),
        ),
        2,
    ),
    engine("b", 60),
    engine("c", 40),
    engine("d", 30, device="host"),
    engine("e", 30),
    EngineSpec("f", (PlacementOption((("gpu", 20),), 1.0), PlacementOption((("host", 20),), 1.0))),
    engine("huge", 200),
)
MODELS = (
    model("a"),
    model("b", priority=1),
    model("c", keep_alive_s=2.0),
    model("d", pinned=True),
    model("e"),
    model("e2", "e"),
    model("f"),
    model("huge"),
)
ERROR = {"error": "LoadFailed", "message": "scripted"}


class Played(Shell):
    """A shell that goes through the workload, whatever became of the step before."""

    def send(self, event: ev.Event) -> list[act.Action]:
        """An event that cannot even be checked has changed nothing, and is sent once more."""
        try:
            return super().send(event)
        except InternalError as error:
            if "cannot be checked" not in error.message:
                raise
            self.counts["faults"] += 1
            self.check()
            return super().send(event)

    def end_all(self) -> None:
        """Every lease is given back."""
        for request in list(self.leases):
            if request in self.leases:
                self.end(request)

    def rest(self) -> None:
        """Until nothing is under way and no request waits: all end within a minute of the core's time."""
        for _ in range(60):
            self.settle()
            self.end_all()
            while self.staging:
                self.finish_staging()
            if not self.waiting and not self.loading and not self.unloading:
                return
            self.advance(1.0)
        raise AssertionError(f"hangs: {sorted(self.waiting)} {list(self.core.state.residents)}")


def play(shell: Played) -> None:
    """Everything that the core does, in about ninety events."""
    lend(shell)
    interrupt(shell)
    entangle(shell)
    look_ahead(shell)
    fail(shell)
    configure(shell)
    shell.rest()


def lend(shell: Played) -> None:
    """Hits, misses, evictions, a drain, a cancel, a deadline, a client that goes, a lease taken."""
    shell.settle()
    for name in "aabcab":
        shell.ask(name, "one")
        shell.settle()
        shell.advance(0.5)
        shell.end_all()
    shell.ask("a", "one")
    shell.settle()
    shell.ask("b", "two")
    late = shell.ask("b", "two", deadline=shell.now + 3.0)
    withdrawn = shell.ask("c", "three")
    shell.send(ev.RequestCancelled(withdrawn))
    shell.advance(5.0)
    shell.ask("a", "one")
    shell.gone("one")
    shell.settle()
    assert late not in shell.waiting
    for request in list(shell.leases):
        shell.take(request, ERROR)
    shell.gone("two")
    shell.ask("f", "one")
    shell.ask("huge", "one")
    shell.rest()


def interrupt(shell: Played) -> None:
    """A lease is asked to yield for a slot, one for bytes; pins come and go; hints."""
    low = shell.ask("b", "low", priority=-1, preemptible=True)
    shell.settle()
    shell.ask("b", "high", priority=2)
    if low in shell.asked & shell.leases.keys():
        shell.yield_(low)
    shell.end_all()
    shell.ask("e", "two", want="pin")
    shell.ask("e2", "three", want="pin", persist=True)
    shell.ask("c", "three", want="load")
    shell.settle()
    shell.ask("b", "two", want="pin")
    shell.ask("c", "four", want="pin")
    shell.ask("c", "five", want="pin", deadline=shell.now + 1.0)
    shell.ask("b", "three")
    shell.settle()
    shell.advance(2.0)
    shell.gone("two")
    shell.gone("four")
    shell.send(ev.HintGiven("unpin", "e2"))
    shell.send(ev.HintGiven("release", "e"))
    if not shell.core.state.residents["c"].demand:
        shell.send(ev.HintGiven("unload", "c"))
    shell.rest()


def entangle(shell: Played) -> None:
    """Two clients wait for the ends of each other's pins."""
    shell.end_all()
    shell.ask("e", "five", want="pin")
    shell.ask("c", "six", want="pin")
    shell.settle()
    shell.ask("b", "five")
    shell.ask("b", "six")
    shell.gone("five")
    shell.gone("six")
    shell.rest()


def look_ahead(shell: Played) -> None:
    """Declared uses that are kept to: a load ahead, a staging, one that is used, one that is withdrawn."""
    shell.declare("a", "b", "e", "a", "b", client="planner")
    shell.settle()
    for name in "abea":
        shell.ask(name, "planner")
        shell.settle()
        if shell.staging:
            shell.finish_staging()
        shell.advance(0.5)
        shell.end_all()
    shell.declare("c", "d", client="planner", plan="other")
    shell.declare(client="planner", plan="other")
    shell.rest()


def fail(shell: Played) -> None:
    """Loads that fail, with and without memory, an engine that dies, measurements, estimates."""
    for out_of_memory in (True, False):
        if "a" in shell.resident():
            shell.send(ev.HintGiven("unload", "a"))
            shell.settle()
        shell.ask("a", "one")
        while shell.unloading:
            shell.finish_unload(next(iter(shell.unloading)))
        if "a" in shell.loading:
            shell.fail_load("a", out_of_memory=out_of_memory)
        shell.rest()
    shell.advance(2.0)
    shell.ask("e", "one")
    shell.settle()
    shell.ask("e", "two")
    if "e" in shell.resident():
        generation = shell.core.state.residents["e"].generation
        shell.send(ev.EngineMeasured("e", generation, (("gpu", 35),)))
        shell.kill("e")
    shell.rest()
    shell.send(ev.EngineEstimated("e", (PlacementOption((("gpu", 25),), 1.0),)))
    shell.send(ev.DeviceMeasured("gpu", 20, 10, 15))
    shell.ask("c", "one")
    shell.advance(5.0)
    shell.settle()
    shell.send(ev.DeviceMeasured("gpu", 100, 90, 15))
    shell.rest()


def configure(shell: Played) -> None:
    """A file changes under declared uses and under waiting requests; a model goes."""
    shell.declare("a", "b", "c", "e", "b", client="planner")
    shell.ask("a", "one")
    shell.settle()
    shell.ask("b", "two")
    shell.ask("e", "two")
    engines = (*ENGINES[:1], engine("b2", 55), *ENGINES[2:4], engine("e3", 30), *ENGINES[5:])
    models = tuple(
        ModelSpec(m.name, {"b": "b2", "e": "e3"}.get(m.engine_id, m.engine_id), m.pinned)
        for m in MODELS
    )
    limits = {"gpu": 100, "host": 70}
    shell.send(ev.Reconfigured(models, engines, limits))
    shell.end_all()
    shell.rest()
    without = tuple(m for m in models if m.name != "c")
    shell.ask("c", "one")
    shell.send(ev.Reconfigured(without, engines[:2] + engines[3:], limits, errors={"c": ERROR}))
    shell.rest()
    shell.send(ev.Reconfigured(MODELS, ENGINES, {"gpu": 100, "host": 80}))


def world(*, may_fail: bool = False) -> Played:
    """A core whose methods count their calls while it handles an event."""
    policy = make_policy("forecast")
    made = shell_of(
        {"gpu": 100, "host": 80}, ENGINES, MODELS, policy=policy, prefetch="load", max_wait_s=4.0
    )
    handle = made.core.handle

    def counted(event: ev.Event, now: float) -> list[act.Action]:
        Calls.counting = True
        try:
            return handle(event, now)
        finally:
            Calls.counting = False

    made.core.handle = counted  # type: ignore[method-assign]
    return Played(
        made.core, timer=made.timer, loading=made.loading, may_fail=may_fail, started=True
    )


def all_are_served(shell: Played) -> None:
    """Every model is, one after another."""
    shell.advance(60.0)
    for entry in MODELS[:-1]:
        request = shell.ask(entry.name, "afterwards")
        shell.settle()
        assert shell.outcomes.get(request) == "granted", (entry.name, shell.outcomes.get(request))
        shell.end(request)
    shell.rest()


METHODS = methods()


@cache
def counts() -> tuple[int, ...]:
    """How often each method is called in the workload."""
    with ExitStack() as stack:
        calls = [stack.enter_context(failing(part, name, 0)) for part, name in METHODS]
        play(world())
    return tuple(one.count for one in calls)


def survives(part: type[Any], name: str, at: int) -> None:
    """The workload with one failure."""
    with failing(part, name, at):
        shell = world(may_fail=True)
        play(shell)
    assert shell.counts["faults"] >= 1, "a fault is told"
    all_are_served(shell)


def points(most: int) -> list[tuple[type[Any], str, int]]:
    """Calls to fail at, so many at most of each method; which ones differs from method to method."""
    found: list[tuple[type[Any], str, int]] = []
    for number, ((part, name), count) in enumerate(zip(METHODS, counts(), strict=True)):
        step = max(1, count // most)
        first = 1 + 7 * number % step
        found.extend((part, name, at) for at in range(first, count + 1, step)[:most])
    return found


def test_the_workload_calls_nearly_every_method() -> None:
    """What is never called is never made to fail."""
    uncalled = [name for (_, name), count in zip(METHODS, counts(), strict=True) if not count]
    assert not uncalled


def test_one_failure_anywhere_is_told_and_survived() -> None:
    """At one call of each method: of some the first, of others a later one."""
    for part, name, at in points(1):
        survives(part, name, at)


@pytest.mark.full
def test_one_failure_at_any_call_is_told_and_survived() -> None:
    """At two hundred calls of each method."""
    for part, name, at in points(200):
        survives(part, name, at)
