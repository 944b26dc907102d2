"""Leases have an owner, end once, and come back with their client."""

from __future__ import annotations

import pytest

from budget import actions as act
from budget import events as ev
from budget.books.states import State
from budget.errors import InternalError, InvalidRequest
from tests.budget.machine import engine, model, shell_of


def test_a_lease_ends_once() -> None:
    """A double release raises and changes nothing."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a")
    shell.end(lease)
    books = shell.core.ledgers()
    with pytest.raises(InvalidRequest, match="does not hold"):
        shell.send(ev.LeaseEnded(lease, "c"))
    assert shell.core.ledgers() == books


def test_a_foreign_release_raises_and_the_lease_stays() -> None:
    """Only the client it was granted to gives a lease back."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a", "alice")
    with pytest.raises(InvalidRequest, match="bob does not hold"):
        shell.send(ev.LeaseEnded(lease, "bob"))
    assert shell.state("a") is State.LEASED
    shell.end(lease)


def test_a_client_that_is_gone_frees_its_leases_and_leaves_the_queue() -> None:
    """The next in line is served at once; other clients' leases stay."""
    shell = shell_of(100, [engine("a", 50), engine("b", 50)])
    shell.serve("a", "dead")
    alive = shell.serve("b", "alive")
    queued, next_up = shell.ask("a", "dead"), shell.ask("a", "alive")
    shell.gone("dead")
    assert shell.outcomes[queued] == "Cancelled"
    assert shell.outcomes[next_up] == "granted"
    assert set(shell.leases) == {alive, next_up}


def test_slots_are_granted_lowest_first_and_reused() -> None:
    """As many leases as slots, each with a number of its own."""
    shell = shell_of(100, [engine("a", 50, slots=3)])
    first, second, third = shell.serve("a"), shell.ask("a"), shell.ask("a")
    assert [shell.leases[r].slot for r in (first, second, third)] == [0, 1, 2]
    fourth = shell.ask("a")
    assert fourth in shell.waiting
    shell.end(second)
    assert shell.leases[fourth].slot == 1


def test_a_leased_engine_is_never_evicted_for_a_young_request() -> None:
    """Before max_wait, a request waits for the lease to end."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    lease = shell.serve("a")
    shell.ask("b")
    assert not shell.unloading
    shell.end(lease)
    assert shell.unloading.keys() == {"a"}


def test_a_grant_says_whether_it_was_cold() -> None:
    """Cold: the load came after the arrival; waiting for a slot of a warm engine is not cold."""
    shell = shell_of(100, [engine("a", 50)])
    cold = shell.serve("a")
    warm = shell.ask("a")
    assert shell.leases[cold].cold
    shell.end(cold)
    assert not shell.leases[warm].cold


def test_a_grant_carries_arrival_and_grant_times() -> None:
    """The trace of a request needs both."""
    shell = shell_of(100, [engine("a", 50)])
    shell.advance(1.0)
    request = shell.ask("a")
    shell.advance(2.0)
    shell.settle()
    assert (shell.leases[request].arrived_at, shell.leases[request].granted_at) == (1.0, 3.0)


def test_one_request_id_arrives_once() -> None:
    """A keeper that reuses an id has a bug, and hears of it."""
    shell = shell_of(100, [engine("a", 50)], [model("a")])
    lease = shell.serve("a")
    with pytest.raises(InternalError, match="arrived twice"):
        shell.core.handle(ev.RequestArrived(lease, "c", "a"), shell.now)


def test_cancelling_what_waits_no_more_changes_nothing() -> None:
    """A cancel that crosses its grant is no error."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a")
    shell.send(ev.RequestCancelled(lease))
    assert lease in shell.leases


REASON = {"error": "EngineTimeout", "message": "The client does not answer."}


def test_a_lease_that_is_taken_serves_the_next_and_tells_its_holder_once() -> None:
    """The holder hears why; giving the lease back afterwards is no error, once."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a", "stopped")
    waits = shell.ask("a", "other")
    shell.take(lease, REASON)
    assert shell.outcomes[waits] == "granted"
    revoked = [a for a in shell.log if isinstance(a, act.Revoke)]
    assert [(r.request_id, r.client_id, r.error) for r in revoked] == [(lease, "stopped", REASON)]
    shell.send(ev.LeaseEnded(lease, "stopped"))
    with pytest.raises(InvalidRequest):
        shell.send(ev.LeaseEnded(lease, "stopped"))


def test_taking_a_lease_that_is_over_changes_nothing() -> None:
    """It can cross its end on the way."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a")
    shell.end(lease)
    assert shell.send(ev.LeaseTaken(lease, REASON)) == []
    assert shell.send(ev.LeaseTaken("never granted", REASON)) == []


def test_a_request_that_yields_a_lease_that_was_taken_ends_with_the_reason() -> None:
    """It does not wait for what it was told it lost."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a", preemptible=True)
    shell.take(lease, REASON)
    actions = shell.core.handle(ev.LeaseYielded(lease, "c"), shell.now)
    assert actions == [act.Deny(lease, "c", REASON)]


def test_what_a_client_that_is_gone_was_told_is_forgotten() -> None:
    """A table of leases that are over does not grow with the clients that never came back."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a", "stopped")
    shell.take(lease, REASON)
    shell.gone("stopped")
    assert not shell.core.state.revoked
