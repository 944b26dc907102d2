"""Declared uses: requests use them up, and they know which share of requests was declared."""

from __future__ import annotations

from budget import events as ev
from budget.books.declared_uses import FADING, DeclaredUses
from budget.eviction.policies import make_policy
from budget.simulation.compare import offline_optimum, run
from tests.budget.machine import engine, shell_of
from tests.simulation.worlds import random_letters, trial


def test_every_change_of_declared_uses_shows() -> None:
    """A policy that keeps what it computed from declared uses can tell when that is stale."""
    uses = DeclaredUses()
    seen = [uses.version]
    uses.declare("p", [("a", "a"), ("b", "b"), ("c", "c")])
    seen.append(uses.version)
    uses.used("p", "a")
    seen.append(uses.version)
    uses.withdraw("p")
    seen.append(uses.version)
    assert len(set(seen)) == len(seen)


def test_a_use_that_is_passed_over_is_dropped_unless_uses_may_come_in_any_order() -> None:
    """Steps that work side by side ask in another order than they were declared in."""
    order = [("a", "a"), ("b", "b"), *(("c", "c"),) * 9, ("d", "d")]
    for any_order in (False, True):
        uses = DeclaredUses()
        uses.declare("p", order, any_order=any_order)
        uses.used("p", "b")
        assert uses.next_uses(2) == ({"a": 0, "c": 1} if any_order else {"c": 0})
        uses.used("p", "d")
        assert ("d" in uses.next_uses(20)) is not any_order, "beyond the few that are looked at"
        uses.used("p", "a")
        assert list(uses.next_uses(20)) == (["c"] if any_order else ["c", "d"])
    uses.declare("p", order)
    uses.used("p", "b")
    assert uses.next_uses(1) == {"c": 0}, "the newest declaration says whether they may"


def test_the_share_of_unplanned_requests_follows_what_comes() -> None:
    """It falls with every declared use and rises with every other."""
    uses = DeclaredUses()
    assert uses.undeclared == 1.0
    uses.declare("p", [("a", "a")] * 20)
    for _ in range(20):
        before = uses.undeclared
        uses.used("p", "a")
        assert uses.undeclared < before
    assert uses.undeclared < 0.05
    uses.used("elsewhere", "z")
    assert uses.undeclared >= FADING


def test_a_declared_use_outranks_what_the_past_says() -> None:
    """The engine used all the time leaves when the other one is declared next."""
    shell = shell_of(
        100,
        [engine("often", 50), engine("seldom", 50), engine("new", 50)],
        policy=make_policy("forecast"),
    )
    shell.use("seldom")
    for _ in range(20):
        shell.advance(1.0)
        shell.use("often")
    shell.send(ev.UsesDeclared("planner", ("new", "seldom", "new", "seldom")))
    shell.advance(1.0)
    shell.use("new", "planner")
    assert shell.resident() == {"seldom", "new"}


def test_more_known_uses_never_cost_much_more() -> None:
    """From nothing known to everything known the cost falls to the optimum."""
    arrivals = random_letters(11, 400)
    least, _ = offline_optimum(trial(arrivals, 8))
    costs = [
        run(trial(arrivals, 8, declare=known), "forecast").summary.load_seconds
        for known in (0, 5, 30, 120)
    ]
    assert costs[0] >= costs[2] >= least - 1e-9
    assert costs[3] <= 1.01 * least


def test_no_engine_leaves_where_all_together_free_too_little() -> None:
    """Neither for a declared use nor for a request: the exact choice counts bytes, too."""
    engines = [engine("small", 20), engine("busy", 60), engine("big", 90)]
    shell = shell_of(100, engines, policy=make_policy("forecast"), prefetch="load")
    shell.use("small")
    shell.serve("busy")
    shell.declare("big", "small")
    assert not shell.unloading
    shell.ask("big", "other")
    assert not shell.unloading
    assert shell.resident() == {"small", "busy"}
