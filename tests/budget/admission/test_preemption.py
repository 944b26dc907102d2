"""Which answers are interrupted for which requests, and that being interrupted ends."""

from __future__ import annotations

from typing import Any

import pytest

from budget import actions as act
from budget import events as ev
from budget.errors import InvalidRequest
from tests.budget.machine import Shell, engine, model, shell_of


def asked(shell: Shell) -> list[str]:
    """The leases that were asked to yield, in order."""
    return [a.request_id for a in shell.log if isinstance(a, act.AskYield)]


def one_slot(**settings: Any) -> Shell:
    """One engine of one slot that is resident."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)], max_wait_s=10.0, **settings)
    shell.ask("a", want="load")
    shell.settle()
    return shell


def test_a_slot_is_asked_for_by_a_request_of_higher_rank_and_given_back_in_turn() -> None:
    """The one that yields waits at its own priority, before equals that came after it."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    equal = shell.ask("a", preemptible=True)
    assert asked(shell) == []
    high = shell.ask("a", priority=5)
    assert asked(shell) == [low]
    shell.yield_(low)
    assert high in shell.leases
    shell.end(high)
    assert low in shell.leases
    shell.end(low)
    assert equal in shell.leases


def test_bytes_are_asked_for_when_all_that_is_in_the_way_would_yield() -> None:
    """The engine leaves once its leases are back; the interrupted one waits for its return."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    high = shell.ask("b", priority=5)
    assert asked(shell) == [low]
    shell.yield_(low)
    shell.settle()
    assert high in shell.leases
    assert low in shell.waiting
    shell.end(high)
    shell.settle()
    grant = shell.leases[low]
    assert grant.cold


def test_one_lease_that_cannot_yield_saves_the_others_from_a_vain_interruption() -> None:
    """Its engine stays until it ends whatever the others do."""
    shell = shell_of(100, [engine("a", 60, slots=2), engine("b", 60)])
    shell.ask("a", want="load")
    shell.settle()
    shell.ask("a", preemptible=True)
    shell.ask("a")
    shell.ask("b", priority=5)
    assert asked(shell) == []


def test_as_many_leases_are_asked_as_urgent_requests_wait() -> None:
    """The lowest priority first, among equals the one that began last."""
    shell = shell_of(100, [engine("a", 60, slots=3)])
    shell.ask("a", want="load")
    shell.settle()
    first = shell.ask("a", preemptible=True)
    lowest = shell.ask("a", preemptible=True, priority=-3)
    shell.advance(1.0)
    last = shell.ask("a", preemptible=True)
    for expected in ([lowest], [lowest, last], [lowest, last, first], [lowest, last, first]):
        shell.ask("a", priority=5)
        assert asked(shell) == expected


@pytest.mark.parametrize(
    ("preempt", "preemptible", "priority"), [(False, True, 5), (True, False, 5), (True, True, 0)]
)
def test_no_client_is_asked_to_yield_without_need_or_leave(
    preempt: bool, preemptible: bool, priority: int
) -> None:
    """Not when it is switched off, not what cannot be resumed, not for equals."""
    shell = one_slot(preempt=preempt)
    shell.ask("a", preemptible=preemptible)
    shell.ask("a", priority=priority)
    shell.advance(5.0)
    assert asked(shell) == []


def test_being_interrupted_ends() -> None:
    """Once the waits since it first ran add up to max_wait_s, a request is not asked again."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    waited = 0.0
    for _ in range(10):
        high = shell.ask("a", priority=5)
        if asked(shell)[-1:] != [low] or high in shell.leases or low not in shell.asked:
            break
        shell.yield_(low)
        shell.advance(4.0)
        waited += 4.0
        shell.end(high)
        assert low in shell.leases
    assert waited == 12.0
    assert high in shell.waiting
    shell.end(low)
    assert high in shell.leases


def test_an_interrupted_request_ages_like_any_other() -> None:
    """After max_wait_s no later request passes it, whatever its priority."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    high = shell.ask("a", priority=5)
    shell.yield_(low)
    shell.advance(10.0)
    higher = shell.ask("a", priority=9)
    shell.end(high)
    assert low in shell.leases
    assert higher in shell.waiting


def test_an_older_number_does_not_hide_those_that_aged_meanwhile() -> None:
    """The one that yielded came first but waits since now; another has waited for max_wait_s."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True, priority=-1)
    aged = shell.ask("a", priority=-2)
    shell.advance(9.0)
    high = shell.ask("a", priority=5)
    shell.yield_(low)
    shell.advance(2.0)
    shell.end(high)
    assert aged in shell.leases


def test_a_lease_comes_back_when_no_request_waits_any_more() -> None:
    """The one that yielded goes on at once."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    high = shell.ask("a", priority=5)
    shell.send(ev.RequestCancelled(high))
    shell.yield_(low)
    assert low in shell.leases


def test_an_engine_that_dies_while_it_is_asked_ends_the_request() -> None:
    """It is told so, once; a yield of another client's lease is a bug of the caller."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    shell.ask("a", priority=5)
    shell.kill("a")
    actions = shell.core.handle(ev.LeaseYielded(low, "c"), shell.now)
    assert [type(a) for a in actions if not isinstance(a, act.SetTimer)] == [act.Deny]
    with pytest.raises(InvalidRequest):
        shell.core.handle(ev.LeaseYielded(low, "c"), shell.now)


def test_a_model_that_is_no_longer_configured_ends_the_wait() -> None:
    """UnknownModel, as for every request that waits for it."""
    shell = one_slot()
    low = shell.ask("a", preemptible=True)
    shell.ask("b", priority=5)
    shell.send(ev.Reconfigured((model("b"),), (engine("b", 60),), {"gpu": 100}))
    shell.yield_(low)
    assert shell.outcomes[low] == "UnknownModel"
