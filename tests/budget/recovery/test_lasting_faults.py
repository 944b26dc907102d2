"""Parts of the core that fail for good: requests are served without them, or told at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import pytest

from budget import actions as act
from budget import events as ev
from budget.admission.admission import Admission
from budget.admission.fits import Fitting
from budget.admission.prefetch import Prefetcher
from budget.admission.scheduler import AHEAD, Scheduler
from budget.admission.state import CoreState
from budget.books.declared_uses import DeclaredUses
from budget.books.engines import EngineRecord
from budget.books.ledger import Books
from budget.books.residents import Residents
from budget.books.states import State
from budget.errors import InternalError
from budget.eviction.policies import Lru
from budget.eviction.policies.guarded import JUDGING
from budget.recovery import forced_effects as forced
from budget.recovery.faults import BORNE
from budget.snapshot import snapshot
from tests.budget.machine import Shell, engine, model, shell_of

ERROR = {"error": "EngineTimeout", "message": "scripted"}


def test_every_event_has_an_effect_that_can_be_forced() -> None:
    """An event that is new cannot be forgotten."""
    assert forced.FORCED.keys() == set(get_args(ev.Event))


class Broken(Lru):
    """A policy that fails whenever it is asked, until it is told to stop."""

    name = "broken"
    works = False

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """A bug, or what recency says."""
        if self.works:
            return super().losses(engines, now)
        raise ZeroDivisionError


def swap(shell: Shell, times: int) -> list[str]:
    """Two models take turns on a device that holds one; what the faults were told of."""
    told = []
    for turn in range(times):
        before = len(shell.log)
        shell.use("ab"[turn % 2])
        told += [a.where for a in shell.log[before:] if isinstance(a, act.Fault)]
        shell.advance(1.0)
    return told


def test_a_policy_that_raises_leaves_the_decision_to_recency_and_is_left_out_in_the_end() -> None:
    """Every request is served; the log is not filled; the next configuration trusts it again."""
    policy, specs = Broken(), (engine("a", 80), engine("b", 80))
    shell = shell_of(100, specs, policy=policy)
    shell.may_fail = True
    assert swap(shell, 3 * BORNE) == [JUDGING] * BORNE
    assert shell.core.state.records[-1].policy == "lru"
    assert snapshot(shell.core, shell.now)["left_out"] == [JUDGING]
    policy.works = True
    shell.send(ev.Reconfigured((model("a"), model("b")), specs, {"gpu": 100}))
    assert swap(shell, 2) == []
    assert shell.core.state.records[-1].policy == "broken"


@pytest.mark.parametrize("wrong", [[math.nan], [-1.0], [math.inf], [], [1.0, 1.0]])
def test_losses_that_cannot_be_are_a_fault_of_the_policy(wrong: list[float]) -> None:
    """NaN, infinity, less than nothing, too few, too many."""
    policy = Broken()
    policy.losses = lambda *_: wrong  # type: ignore[method-assign]
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], policy=policy)
    shell.may_fail = True
    assert swap(shell, 2) == [JUDGING]
    assert shell.resident() == {"b"}


def test_victims_of_a_policy_that_do_not_free_enough_are_not_the_last_word() -> None:
    """None is evicted for nothing, and none waits for a policy's mistake."""
    policy = Lru()
    policy.victims = lambda need: ["nothing"]  # type: ignore[method-assign]
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], policy=policy)
    swap(shell, 2)
    assert shell.resident() == {"b"}


def test_looking_ahead_that_always_fails_is_left_out_and_requests_are_served() -> None:
    """DeclaredUses are a help and no condition."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40)], prefetch="load")
    shell.may_fail = True
    with always_failing(Prefetcher, "look_ahead"):
        for turn in range(2 * BORNE):
            shell.declare("a", "b", client="planner")
            shell.use("ab"[turn % 2])
    assert shell.core.state.faults.left_out == {AHEAD}
    assert shell.core.state.faults.total == BORNE


@contextmanager
def always_failing(part: type[Any], name: str, engine_id: str | None = None) -> Iterator[None]:
    """Every call raises; or every one about an engine."""
    original = getattr(part, name)

    def method(self: Any, *args: Any, **more: Any) -> Any:
        about = args[0] if args else None
        if engine_id in (None, about, getattr(about, "engine_id", None)):
            raise RuntimeError(f"{part.__name__}.{name} fails")
        return original(self, *args, **more)

    setattr(part, name, method)
    try:
        yield
    finally:
        setattr(part, name, original)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (Scheduler, "_admit_for"),
        (Scheduler, "_admit"),
        (Scheduler, "_serve_engine"),
        (Admission, "choose"),
        (Fitting, "feasible"),
        (CoreState, "load"),
        (CoreState, "grant"),
        (Residents, "book"),
        (Residents, "loaded"),
        (Residents, "lease"),
    ],
)
def test_an_engine_that_cannot_be_decided_about_denies_its_requests_and_no_others(
    part: type[Any], name: str
) -> None:
    """They hear that it is a bug of ours, at once; every other model is served."""
    shell = shell_of(200, [engine("a", 80), engine("b", 80)])
    shell.may_fail = True
    with always_failing(part, name, "a"):
        request = shell.ask("a")
        shell.settle()
        shell.advance(60.0)
        assert shell.outcomes.get(request) in ("InternalError", "granted")
        if request in shell.leases:
            shell.end(request)
        shell.use("b")
    shell.use("a")


@pytest.mark.parametrize(
    "event",
    [
        lambda shell, lease: ev.ClientGone("c"),
        lambda shell, lease: ev.LeaseEnded(lease, "c"),
        lambda shell, lease: ev.LeaseTaken(lease, ERROR),
    ],
    ids=["gone", "ended", "taken"],
)
@pytest.mark.parametrize(
    ("part", "name"),
    [
        (CoreState, "give_back"),
        (Residents, "end_lease"),
        (CoreState, "revoke"),
        (EngineRecord, "move"),
        (Scheduler, "_pass"),
        (DeclaredUses, "withdraw"),
    ],
)
def test_a_lease_is_back_whatever_fails_for_good(
    part: type[Any], name: str, event: Callable[[Shell, str], ev.Event]
) -> None:
    """The end of a lease, of a client and of a patience take effect on the facts themselves."""
    shell = shell_of(100, [engine("a", 80)])
    shell.may_fail = True
    lease = shell.serve("a")
    with always_failing(part, name):
        del shell.leases[lease]
        for action in shell.core.handle(event(shell, lease), shell.now):
            assert isinstance(action, act.Fault | act.Revoke | act.SetTimer)
        assert shell.core.check() == []
        assert not shell.core.state.leases
        assert shell.state("a") is State.IDLE


def test_what_does_not_balance_is_said_all_of_it_and_checking_never_raises() -> None:
    """For `keepwarm ps`, after an internal error."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40)])
    shell.use("a")
    assert shell.core.check() == []
    state = shell.core.state
    state.residents["a"].state = State.LEASED
    state.residents["b"].demand = 3
    state.declared_uses.declare("p", [("z", "z")])
    found = "\n".join(shell.core.check())
    for word in ("held as", "has leases", "demand 3", "declared uses p name"):
        assert word in found
    with pytest.raises(InternalError, match="demand 3"):
        shell.core.validate()
    state.residents = None  # type: ignore[assignment]
    assert len(shell.core.check()) >= 5


@pytest.mark.parametrize("name", ["_pass", "_wanting", "_awaited"])
def test_a_scheduler_that_sees_nothing_any_more_leaves_none_waiting(name: str) -> None:
    """A request that would wait gets `InternalError`; resident engines serve."""
    shell = shell_of(200, [engine("a", 80), engine("b", 80)])
    shell.use("a")
    shell.may_fail = True
    with always_failing(Scheduler, name):
        request = shell.ask("b")
        assert shell.outcomes[request] == "InternalError"
        lease = shell.ask("a")
        assert lease in shell.leases
        shell.end(lease)
    shell.use("b")


def test_tables_that_were_made_anew_are_those_that_the_scheduler_looks_at() -> None:
    """A pin whose load fails after a fault is tried again like any other."""
    shell = shell_of(100, [engine("p", 50)], [model("p", pinned=True)])
    shell.may_fail = True
    with always_failing(Books, "hold"):
        specs = (engine("p", 50),)
        shell.send(ev.Reconfigured((model("p", pinned=True),), specs, {"gpu": 100}))
    assert shell.counts["faults"] == 1
    shell.fail_load("p")
    assert shell.timer == 0.5
