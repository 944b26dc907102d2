"""Events that cross each other."""

from __future__ import annotations

import pytest

from budget import actions as act
from budget import events as ev
from budget.books.states import State
from budget.errors import InternalError
from tests.budget.machine import engine, shell_of


def test_an_arrival_during_eviction_waits_for_the_next_load() -> None:
    """It does not resurrect what is leaving, and it is not lost."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.use("a")
    for_b = shell.ask("b")
    assert shell.state("a") is State.EVICTING
    for_a = shell.ask("a")
    shell.settle()
    assert shell.outcomes[for_b] == "granted"
    assert for_a in shell.waiting
    shell.end(for_b)
    shell.settle()
    assert shell.leases[for_a].generation == 2


def test_an_arrival_during_an_eviction_without_a_claim_reloads_at_once() -> None:
    """The next load starts when the process before it has ended."""
    shell = shell_of(100, [engine("a", 80)])
    shell.use("a")
    shell.send(ev.HintGiven("unload", "a"))
    request = shell.ask("a")
    assert not shell.loading
    shell.finish_unload("a")
    shell.finish_load("a")
    assert request in shell.leases


def test_cancel_during_load_leaves_a_warm_engine_when_no_request_needs_the_bytes() -> None:
    """The load is paid for; it is finished and stays."""
    shell = shell_of(100, [engine("a", 80)])
    request = shell.ask("a")
    shell.send(ev.RequestCancelled(request))
    assert shell.outcomes[request] == "Cancelled"
    shell.finish_load("a")
    assert shell.state("a") is State.IDLE


def test_a_cancelled_load_is_abandoned_when_a_request_needs_the_bytes() -> None:
    """It is a victim like any other, and its bytes are free only when it is gone."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.send(ev.RequestCancelled(shell.ask("a")))
    request = shell.ask("b")
    assert shell.unloading["a"].abandon
    assert not shell.loading
    shell.send(ev.LoadFinished("a", 1))
    assert not shell.loading, "an abandoned load that finished still leaves"
    shell.settle()
    assert shell.outcomes[request] == "granted"


def test_a_load_with_one_of_two_waiters_left_goes_on() -> None:
    """Only a load that no request waits for may be abandoned."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    first, second = shell.ask("a"), shell.ask("a")
    shell.send(ev.RequestCancelled(first))
    shell.ask("b")
    assert not shell.unloading
    shell.finish_load("a")
    assert second in shell.leases


def test_death_during_load_is_a_failed_load() -> None:
    """The keeper reports it as such; the other event is refused as a bug."""
    shell = shell_of(100, [engine("a", 80)])
    request = shell.ask("a")
    with pytest.raises(InternalError, match="DIED is impossible while LOADING"):
        shell.send(ev.EngineGone("a", 1, {"error": "EngineDied"}))
    shell.fail_load("a")
    assert shell.outcomes[request] == "LoadFailed"


def test_death_during_eviction_changes_nothing() -> None:
    """It was leaving anyway; its bytes return once."""
    shell = shell_of(100, [engine("a", 80)])
    shell.use("a")
    shell.send(ev.HintGiven("unload", "a"))
    shell.send(ev.EngineGone("a", 1, {"error": "EngineDied"}))
    assert shell.core.ledgers()[0].reserved_bytes == 80
    shell.finish_unload("a")
    assert shell.core.ledgers()[0].reserved_bytes == 0


def test_a_release_during_a_lease_ends_with_the_next_lease() -> None:
    """'May leave now' is about now: a model that is asked for again is wanted again."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40), engine("c", 40)])
    lease = shell.serve("a")
    shell.send(ev.HintGiven("release", "a"))
    assert shell.state("a") is State.LEASED
    shell.end(lease)
    assert shell.core.state.residents["a"].released
    shell.use("b")
    shell.advance(1.0)
    shell.use("a")
    shell.use("c")
    assert shell.resident() == {"a", "c"}


def test_two_loads_never_book_the_same_bytes() -> None:
    """The second waits although at its arrival the first had read nothing yet."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    shell.ask("a")
    second = shell.ask("b")
    assert shell.loading.keys() == {"a"}
    assert second in shell.waiting


def test_bytes_that_leave_for_one_are_not_promised_to_another() -> None:
    """A later, smaller request does not take what is coming free for the first."""
    shell = shell_of(100, [engine("old", 90), engine("a", 80), engine("small", 15)])
    shell.use("old")
    first = shell.ask("a")
    small = shell.ask("small")
    assert not shell.loading, "10 are free and 80 of the 90 that leave are promised"
    shell.finish_unload("old")
    assert shell.loading.keys() == {"a", "small"}
    shell.settle()
    assert {first, small} == set(shell.leases)


def test_a_death_frees_bytes_for_the_claim_that_waited_for_its_leases() -> None:
    """What drained is gone sooner than expected."""
    shell = shell_of(100, [engine("a", 80), engine("c", 80)], max_wait_s=1.0)
    shell.serve("a")
    lone = shell.ask("c")
    shell.advance(1.0)
    shell.kill("a")
    assert shell.loading.keys() == {"c"}
    shell.settle()
    assert lone in shell.leases


def test_a_deadline_at_the_moment_of_the_grant_is_late() -> None:
    """At its deadline a request is over, even if the load ends right then."""
    shell = shell_of(100, [engine("a", 80)])
    request = shell.ask("a", deadline=2.0)
    shell.now = 2.0
    shell.finish_load("a")
    assert shell.outcomes[request] == "DeadlineExceeded"


def test_a_client_that_leaves_while_its_model_loads_leaves_no_claim() -> None:
    """The engine that drained for it serves on."""
    shell = shell_of(100, [engine("a", 80, slots=2), engine("c", 80)], max_wait_s=1.0)
    shell.serve("a", "stays")
    shell.ask("c", "leaves")
    shell.advance(1.0)
    blocked = shell.ask("a", "stays")
    shell.gone("leaves")
    assert not shell.core.state.claims
    assert shell.outcomes[blocked] == "granted"


def test_an_early_timer_is_set_again() -> None:
    """A loop that rings a little early loses nothing."""
    shell = shell_of(100, [engine("a", 80)])
    shell.serve("a")
    late = shell.ask("a", deadline=3.0)
    shell.now, shell.timer = 2.999, None
    armed = shell.send(ev.TimerDue())
    assert armed == [act.SetTimer(3.0)]
    shell.advance(0.001)
    assert shell.outcomes[late] == "DeadlineExceeded"
