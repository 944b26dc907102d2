"""What devices were measured to have room for: unknown figures, and loads in progress."""

from __future__ import annotations

import pytest

from budget import events as ev
from budget.books.ledger import UNJUDGED_AT_MOST_S
from budget.books.states import State
from budget.snapshot import snapshot
from tests.budget.machine import Shell, engine, shell_of

PERIOD_S = 2.0


def ceiling(shell: Shell) -> int:
    """What the first device may hold now."""
    return shell.core.ledgers()[0].ceiling_bytes


def test_an_unknown_figure_leaves_the_ceiling_and_is_shown_as_unknown() -> None:
    """None is not 0: nothing is evicted for it, and nothing is forgotten either."""
    shell = shell_of(100, [engine("a", 60)])
    shell.use("a")
    shell.send(ev.DeviceMeasured("gpu", None, None))
    assert (ceiling(shell), shell.state("a")) == (100, State.IDLE)
    shell.send(ev.DeviceMeasured("gpu", 70, 10))
    shell.send(ev.DeviceMeasured("gpu", None, 10))
    assert ceiling(shell) == 70
    row = snapshot(shell.core, shell.now)["devices"][0]
    assert row["available_bytes"] is None
    shell.send(ev.DeviceMeasured("gpu", 80, 20))
    assert snapshot(shell.core, shell.now)["devices"][0]["available_bytes"] == 80


def test_while_an_engine_loads_a_measurement_evicts_nothing() -> None:
    """What it has taken so far is neither free nor, where that is not told, its own."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)])
    shell.use("a")
    request = shell.ask("b")
    shell.send(ev.DeviceMeasured("gpu", 50, 10))
    assert (ceiling(shell), shell.state("a")) == (100, State.IDLE)
    assert snapshot(shell.core, shell.now)["devices"][0]["available_bytes"] == 50
    shell.settle()
    assert shell.outcomes[request] == "granted"
    assert shell.state("a") is State.IDLE, "what was measured meanwhile is not judged later either"


def test_while_an_engine_leaves_a_measurement_evicts_nothing() -> None:
    """Its bytes may be gone already, or not yet."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)])
    shell.use("a")
    shell.use("b")
    shell.send(ev.HintGiven("unload", "b"))
    assert shell.state("b") is State.EVICTING
    shell.send(ev.DeviceMeasured("gpu", 30, 0))
    assert (ceiling(shell), shell.state("a")) == (100, State.IDLE)


def test_a_load_elsewhere_does_not_keep_a_device_from_being_judged() -> None:
    """Only the devices that the engine takes bytes of are in motion."""
    shell = shell_of({"gpu": 100, "host": 100}, [engine("a", 40), engine("b", 50, device="host")])
    shell.use("a")
    shell.ask("b")
    shell.send(ev.DeviceMeasured("gpu", 30, 0))
    assert shell.state("a") is State.EVICTING


def test_a_device_that_is_over_its_limit_is_noticed_after_the_load() -> None:
    """The next measurement counts."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)])
    shell.use("a")
    lease = shell.ask("b")
    shell.send(ev.DeviceMeasured("gpu", 60, 0))
    shell.settle()
    shell.send(ev.DeviceMeasured("gpu", 60, 0))
    assert shell.state("a") is State.EVICTING
    assert lease in shell.leases


def test_loads_without_a_pause_do_not_hide_for_ever_that_memory_is_gone() -> None:
    """After a while a device is judged by what is certain: less is free than should be."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)])
    shell.use("a")
    shell.ask("b")
    for _ in range(round(UNJUDGED_AT_MOST_S / PERIOD_S)):
        shell.send(ev.DeviceMeasured("gpu", 45, 5, 8))
        shell.advance(PERIOD_S)
    assert shell.state("a") is State.IDLE
    shell.send(ev.DeviceMeasured("gpu", 45, 5, 8))
    assert ceiling(shell) == 87
    assert shell.state("a") is State.EVICTING


def test_a_load_that_takes_long_evicts_nothing_while_enough_is_free() -> None:
    """Whatever its process was found to take."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)])
    shell.use("a")
    shell.ask("b")
    for _ in range(100):
        shell.send(ev.DeviceMeasured("gpu", 45, 10, 8))
        shell.advance(PERIOD_S)
    assert shell.state("a") is State.IDLE


def test_no_request_is_denied_for_a_ceiling_while_a_newer_measurement_is_not_judged() -> None:
    """Other programs may have left while an engine loads: the next measurement says so."""
    shell = shell_of(100, [engine("a", 20), engine("b", 90)], max_wait_s=4.0)
    shell.send(ev.DeviceMeasured("gpu", 50, 50))
    shell.ask("a", want="load")
    waits = shell.ask("b")
    shell.send(ev.DeviceMeasured("gpu", 100, 90))
    shell.advance(4.0)
    assert waits in shell.waiting
    shell.settle()
    assert waits in shell.waiting
    shell.send(ev.DeviceMeasured("gpu", 100, 80))
    shell.settle()
    assert shell.outcomes[waits] == "granted"


@pytest.mark.parametrize("free", [0, 100])
def test_little_free_memory_is_told_while_an_engine_loads_too(free: int) -> None:
    """What is free now is no guess."""
    shell = shell_of(100, [engine("a", 40)])
    shell.ask("a")
    shell.send(ev.DeviceMeasured("gpu", None, free, 10))
    assert (shell.low == {"gpu"}) == (free < 10)


def test_what_sleeping_engines_hold_lowers_the_ceiling_at_once() -> None:
    """Also while an engine loads, when nothing else that was measured is judged; and back again."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)])
    shell.use("a")
    shell.ask("b")
    shell.send(ev.DeviceMeasured("gpu", None, asleep_bytes=5))
    assert (ceiling(shell), shell.state("a")) == (95, State.IDLE)
    shell.settle()
    shell.send(ev.DeviceMeasured("gpu", 97, 10, asleep_bytes=5))
    assert ceiling(shell) == 95
    shell.send(ev.DeviceMeasured("gpu", 92, 5, asleep_bytes=5))
    assert ceiling(shell) == 92
    shell.send(ev.DeviceMeasured("gpu", None))
    assert ceiling(shell) == 97
