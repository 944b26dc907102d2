"""Order: same-model requests together, within a bound on how long any request waits."""

from __future__ import annotations

from budget import actions as act
from budget import events as ev
from budget.books.engines import EngineSpec, PlacementOption
from budget.books.states import State
from tests.budget.machine import Shell, engine, model, shell_of


def drain(shell: Shell) -> None:
    """Serve one lease after the other until no request waits or holds one."""
    for _ in range(1000):
        shell.settle()
        if not shell.leases:
            return
        shell.end(next(iter(shell.leases)))
    raise AssertionError("never ends")


def test_alternating_requests_at_capacity_one_cost_two_loads() -> None:
    """A B A B A B waiting at once are served A A A B B B."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    for name in "ababab":
        shell.ask(name)
    drain(shell)
    assert shell.loads() == ["a", "b"]
    assert set(shell.outcomes.values()) == {"granted"}


def test_a_lone_request_does_not_wait_for_ever_behind_a_busy_engine() -> None:
    """Before max_wait others pass it; after, the bytes it claimed get no new leases."""
    shell = shell_of(100, [engine("a", 80, slots=2), engine("c", 80)], max_wait_s=10.0)
    running = shell.serve("a")
    lone = shell.ask("c")
    shell.advance(9.9)
    passing = shell.ask("a")
    assert shell.outcomes[passing] == "granted"
    shell.advance(0.2)
    late = shell.ask("a")
    assert late in shell.waiting, "no new lease on claimed bytes"
    assert shell.drains_for("a") == "c"
    shell.end(running)
    assert shell.state("a") is State.LEASED, "running ones end by themselves"
    shell.end(passing)
    assert shell.state("a") is State.EVICTING
    shell.settle()
    assert shell.outcomes[lone] == "granted"
    assert late in shell.waiting
    drain(shell)
    assert shell.loads() == ["a", "c", "a"]


def test_the_claim_of_a_lone_request_is_recorded() -> None:
    """The decision record names the engine that drains, and the engine it drains for."""
    shell = shell_of(100, [engine("a", 80), engine("c", 80)], max_wait_s=10.0)
    shell.serve("a")
    shell.ask("c")
    shell.advance(10.0)
    record = next(a.record for a in shell.log if isinstance(a, act.Record) and a.record.draining)
    assert (record.wanted, record.draining, record.victims) == ("c", ("a",), ())
    assert record.requested == (("gpu", 80),)
    assert record.free == (("gpu", 20),)


def test_idle_bytes_are_taken_before_an_engine_drains() -> None:
    """An aged request evicts the idle one and leaves the busy one alone."""
    shell = shell_of(100, [engine("a", 50), engine("b", 40), engine("c", 50)], max_wait_s=1.0)
    shell.serve("a")
    shell.use("b")
    shell.ask("c")
    assert shell.state("b") is State.EVICTING
    assert shell.drains_for("a") is None


def test_who_was_forced_in_has_time_to_serve() -> None:
    """Two aged models at capacity one do not throw each other out at every lease."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], max_wait_s=5.0)
    shell.serve("a")
    shell.ask("b")
    shell.advance(4.0)
    back = shell.ask("a")
    shell.advance(1.0)
    shell.end(next(iter(shell.leases)))
    shell.settle()
    shell.ask("b")
    shell.advance(4.5)
    assert back in shell.waiting
    assert shell.drains_for("b") is None, "immune for max_wait after its load"
    shell.advance(0.5)
    assert shell.drains_for("b") == "a"
    drain(shell)
    assert set(shell.outcomes.values()) == {"granted"}


def test_a_higher_priority_drains_at_once() -> None:
    """It does not wait for max_wait, and lower ones get no new lease meanwhile."""
    shell = shell_of(100, [engine("a", 80, slots=2), engine("b", 80)], [model("b", priority=1)])
    running = shell.serve("a")
    urgent = shell.ask("b")
    assert shell.drains_for("a") == "b"
    assert shell.ask("a") in shell.waiting
    shell.end(running)
    shell.settle()
    assert shell.outcomes[urgent] == "granted"


def test_an_equal_priority_does_not_drain() -> None:
    """Only a strictly higher one interrupts the order."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], [model("b", priority=1)])
    shell.serve("a", priority=1)
    shell.ask("b")
    assert shell.drains_for("a") is None


def test_priorities_order_waiting_requests_until_one_ages() -> None:
    """The higher first, equals by arrival; the aged before all."""
    shell = shell_of(100, [engine("a", 50)], max_wait_s=10.0)
    held = shell.serve("a")
    aged = shell.ask("a")
    shell.advance(8.0)
    low, high = shell.ask("a"), shell.ask("a", priority=3)
    shell.advance(2.5)
    shell.end(held)
    assert aged in shell.leases
    shell.end(aged)
    assert high in shell.leases
    shell.end(high)
    assert low in shell.leases


def test_cancelling_the_one_it_drained_for_lets_an_engine_serve_on() -> None:
    """A claim goes with the request that justified it; younger ones take their turn."""
    shell = shell_of(100, [engine("a", 80, slots=2), engine("c", 80)], max_wait_s=10.0)
    shell.serve("a")
    aged = shell.ask("c")
    shell.advance(9.0)
    young = shell.ask("c")
    shell.advance(1.0)
    blocked = shell.ask("a")
    assert blocked in shell.waiting
    shell.send(ev.RequestCancelled(aged))
    assert shell.outcomes[blocked] == "granted"
    assert young in shell.waiting
    assert shell.drains_for("a") is None
    shell.advance(9.0)
    assert shell.drains_for("a") == "c", "its own turn has come"


def test_a_claim_is_given_up_when_other_bytes_come_free() -> None:
    """A request that drains one device takes the other when that one has room first."""
    wide = EngineSpec(
        "c", (PlacementOption((("gpu0", 80),), 1.0), PlacementOption((("gpu1", 80),), 1.0))
    )
    shell = shell_of(
        {"gpu0": 100, "gpu1": 100},
        [engine("a", 80, device="gpu0"), engine("b", 80, device="gpu1"), wide],
        max_wait_s=1.0,
    )
    on_first, on_second = shell.serve("a"), shell.serve("b")
    lone = shell.ask("c")
    shell.advance(1.0)
    drained = "a" if shell.drains_for("a") else "b"
    shell.end(on_second if drained == "a" else on_first)
    assert shell.drains_for(drained) is None
    shell.settle()
    assert shell.outcomes[lone] == "granted"
    assert shell.state(drained) is State.LEASED


def test_loads_that_overlap_without_a_gap_do_not_keep_an_aged_request_out() -> None:
    """Four small engines load in turns, one always loading; the large one gets in all the same."""
    small = [engine(f"s{i}", 25) for i in range(8)]
    shell = shell_of(100, [*small, engine("large", 100)], max_wait_s=2.0)
    for i in range(3):
        shell.ask(f"s{i}")
    lone = shell.ask("large")
    for turn in range(3, 60):
        shell.ask(f"s{turn % 8}")
        shell.advance(0.5)
        if "large" in shell.core.state.claims:
            break
        if shell.loading:
            shell.finish_load(next(iter(shell.loading)))
        for request in list(shell.leases)[:-1]:
            shell.end(request)
        for engine_id in list(shell.unloading):
            shell.finish_unload(engine_id)
    for request in list(shell.leases):
        shell.end(request)
    shell.settle()
    assert shell.outcomes[lone] == "granted"


def test_engines_immune_in_turns_do_not_keep_a_large_request_out() -> None:
    """Small models that all aged take turns on two halves; the one that needs both comes in."""
    small = [engine(f"s{i}", 50) for i in range(6)]
    shell = shell_of(100, [*small, engine("large", 100)], max_wait_s=4.0)
    granted_at: dict[str, float] = {}
    lone = ""
    for step in range(200):
        if step == 60:
            lone = shell.ask("large")
        for i in range(6):
            if step < 3 * (i % 2):
                continue  # the halves' turns are out of step
            waits = shell.core.state.queue.of(f"s{i}")
            if not waits or len(waits) < 2:
                shell.ask(f"s{i}")
        for request in list(shell.leases):
            if shell.now - granted_at.setdefault(request, shell.now) >= 1.0:
                shell.end(request)
        shell.settle()
        shell.advance(0.5)
        if lone in shell.leases:
            break
    assert lone in shell.leases, "granted within a few turns"
