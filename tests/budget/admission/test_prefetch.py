"""Looking ahead: declared models are staged and loaded while another one works."""

from __future__ import annotations

import pytest

from budget import actions as act
from budget import events as ev
from budget.admission.state import PREFETCH
from budget.books.engines import EngineSpec, PlacementOption
from budget.books.states import State
from budget.errors import UnknownModel
from budget.settings import Prefetch
from tests.budget.machine import Shell, engine, model, shell_of


def ahead(limit: int = 100, **more: object) -> Shell:
    """Three engines of 40 and two pinnable ones of 60; prefetch on."""
    engines = [engine(name, 40) for name in "abc"] + [engine(name, 60) for name in "xy"]
    return shell_of(limit, engines, **{"prefetch": "load", **more})  # type: ignore[arg-type]


def test_the_next_stage_loads_while_the_first_one_works() -> None:
    """It fits beside it; when it is asked for it is there, and nothing waited."""
    shell = ahead()
    shell.declare("a", "b")
    lease = shell.serve("a")
    assert shell.loads() == ["a", "b"]
    assert shell.state("b") is State.IDLE
    shell.end(lease)
    shell.serve("b")
    assert shell.core.state.prefetch.used >= 1
    assert shell.core.state.prefetch.wasted_bytes == 0


def test_the_first_step_is_loaded_as_soon_as_it_is_declared() -> None:
    """The reason of the load says that no request asked for it yet."""
    shell = ahead()
    shell.declare("a")
    assert [a.reason for a in shell.log if isinstance(a, act.StartLoad)] == [PREFETCH]


def test_one_prefetch_loads_at_a_time() -> None:
    """Loads share the disk: the nearest one has it to itself."""
    shell = ahead()
    shell.declare("a", "b")
    assert shell.loading.keys() == {"a"}
    shell.finish_load("a")
    assert shell.loading.keys() == {"b"}


def test_what_does_not_fit_beside_a_lease_is_staged() -> None:
    """Its file is read into the page cache, so that its load costs less when bytes come free."""
    shell = ahead()
    shell.declare("x", "y")
    lease = shell.serve("x")
    assert shell.staging == {"y"}
    shell.finish_staging()
    assert not shell.staging, "what is staged is not staged again"
    shell.end(lease)
    assert shell.unloading.keys() == {"x"}, "x has no declared use any more, y has"
    shell.settle()
    assert shell.state("y") is State.IDLE


def test_nothing_is_loaded_past_what_has_to_wait() -> None:
    """Bytes that the nearer use will need are not filled with a later one."""
    shell = ahead()
    shell.declare("x", "y", "a")
    shell.serve("x")
    assert shell.loads() == ["x"]


def test_a_nearer_next_use_is_spared() -> None:
    """Evicting what is needed sooner would only move the wait."""
    shell = ahead()
    shell.declare("x", "x", "y")
    shell.use("x")
    assert shell.state("x") is State.IDLE
    assert not shell.unloading
    shell.use("x")
    assert shell.unloading.keys() == {"x"}


def test_a_pinned_engine_is_spared() -> None:
    """A declared use is no reason to break a promise."""
    engines = [engine("judge", 50), engine("x", 60), engine("a", 40)]
    shell = shell_of(100, engines, [model("judge", pinned=True)], prefetch="load")
    shell.settle()
    shell.declare("x", "a")
    assert shell.state("judge") is State.IDLE
    assert shell.loading.keys() == {"a"}, "x can never be beside the pin"


def test_a_request_that_waits_for_bytes_comes_first() -> None:
    """While a request waits for bytes of a device, nothing is loaded ahead there."""
    shell = ahead()
    shell.serve("x")
    shell.ask("y", "other")
    shell.declare("a")
    assert shell.loads() == ["x"]


def test_a_request_abandons_a_prefetch_that_is_in_its_way() -> None:
    """The bytes it booked are for the next request; what it read was in vain."""
    shell = ahead()
    shell.declare("x")
    request = shell.ask("y", "other")
    assert shell.unloading["x"].abandon
    shell.settle()
    assert request in shell.leases
    assert shell.core.state.prefetch.wasted_bytes == 60


def test_a_request_for_what_is_being_loaded_ahead_waits_for_that_load() -> None:
    """The same bytes are not booked twice."""
    shell = ahead()
    shell.declare("a")
    request = shell.ask("a")
    assert shell.loads() == ["a"]
    shell.finish_load("a")
    assert request in shell.leases


def test_a_load_that_is_waited_for_has_the_disk_to_itself() -> None:
    """Nothing is staged or loaded ahead until it is done."""
    shell = ahead()
    shell.ask("a", "other")
    shell.declare("b", "x")
    assert shell.loading.keys() == {"a"}
    assert not shell.staging
    shell.finish_load("a")
    assert shell.loading.keys() == {"b"}


def test_staging_stops_when_the_use_is_declared_no_more() -> None:
    """What was read is counted as wasted."""
    shell = ahead()
    shell.serve("x", "other")
    shell.declare("y")
    assert shell.staging == {"y"}
    shell.declare()
    assert isinstance(shell.log[-1], act.StopStaging)
    shell.finish_staging(7)
    assert shell.core.state.prefetch.staged_bytes == 7
    assert shell.core.state.prefetch.wasted_bytes == 7


def test_declared_uses_end_with_their_client() -> None:
    """Under whatever name it was declared; another client's goes on."""
    shell = ahead()
    shell.declare("a", "b", client="one", plan="p")
    shell.declare("b", "c", client="two")
    shell.gone("one")
    assert shell.core.state.declared_uses.order(9) == ["b", "c"]


def test_requests_of_other_connections_use_declared_uses_up_by_their_name() -> None:
    """A program talks to its keeper over several connections."""
    shell = ahead()
    shell.declare("a", "b", "a", client="holder", plan="p")
    shell.settle()
    shell.end(shell.ask("a", "worker", plan="p"))
    assert shell.core.state.declared_uses.order(9) == ["b", "a"]
    shell.end(shell.ask("b", "stranger"))
    assert shell.core.state.declared_uses.order(9) == ["b", "a"]


def test_declared_uses_with_an_unknown_model_are_refused_whole() -> None:
    """The uses that were declared before stand."""
    shell = ahead()
    shell.declare("a")
    with pytest.raises(UnknownModel):
        shell.declare("b", "unknown")
    assert shell.core.state.declared_uses.order(9) == ["a"]


def test_keep_alive_does_not_begin_before_the_first_use() -> None:
    """Loaded ahead and waiting is not idle; when the declared uses are withdrawn, it is."""
    shell = shell_of(100, [engine("a", 40)], [model("a", keep_alive_s=5.0)], prefetch="load")
    shell.declare("a")
    shell.settle()
    shell.advance(60.0)
    assert shell.state("a") is State.IDLE
    shell.declare()
    shell.advance(4.9)
    assert shell.state("a") is State.IDLE
    shell.advance(0.1)
    assert shell.state("a") is State.EVICTING
    assert shell.core.state.prefetch.wasted_bytes == 40


def test_stage_only_loads_nothing_ahead() -> None:
    """`prefetch = "stage"`: files are read, bytes of devices are left alone."""
    shell = ahead(prefetch="stage")
    shell.declare("a", "b")
    assert shell.staging == {"a"}
    shell.finish_staging()
    assert shell.staging == {"b"}
    assert not shell.loads()


def on_cores(threads: int, cores: int, prefetch: Prefetch = "spare") -> Shell:
    """Three engines that all fit and compute on so many of a machine's cores."""
    specs = [
        EngineSpec(n, (PlacementOption((("gpu", 30),), 30.0, threads=threads),), 2) for n in "abc"
    ]
    return shell_of(100, specs, prefetch=prefetch, cores=cores)


def test_with_spare_and_every_core_computing_what_comes_next_is_only_staged() -> None:
    """A load would slow the generation by more than it hides; it begins when the lease ends."""
    shell = on_cores(threads=4, cores=4)
    lease = shell.serve("a")
    shell.declare("b")
    assert shell.loads() == ["a"]
    assert shell.staging == {"b"}
    shell.finish_staging()
    shell.end(lease)
    assert shell.loads() == ["a", "b"]


def test_with_a_core_free_the_next_load_runs_beside_the_generation() -> None:
    """Two leases on one engine share its threads, those of two engines add up."""
    shell = on_cores(threads=2, cores=4)
    leases = [shell.serve("a"), shell.serve("a")]
    shell.declare("b", "c")
    shell.settle()
    assert shell.state("b") is State.IDLE
    leases.append(shell.serve("b"))
    assert shell.state("c") is State.IDLE, "it was loaded before the second engine was in use"
    shell.send(ev.HintGiven("unload", "c"))
    shell.settle()
    shell.declare("c")
    assert shell.state("c") is State.ABSENT
    shell.end(leases.pop())
    shell.settle()
    assert shell.state("c") is State.IDLE


def test_a_load_ahead_runs_beside_any_generation_unless_told_otherwise() -> None:
    """`prefetch = true`: what fits beside what is leased is loaded, whatever the cores do."""
    shell = on_cores(threads=4, cores=4, prefetch="load")
    shell.serve("a")
    shell.declare("b")
    shell.settle()
    assert shell.state("b") is State.IDLE


def test_with_prefetch_off_declared_uses_load_nothing_ahead() -> None:
    """`prefetch = false`: declared uses only tell the policy what comes."""
    shell = ahead(prefetch="off")
    shell.declare("a", "b")
    assert not shell.loads()
    assert not shell.staging


def test_a_prefetch_that_failed_is_left_to_the_request() -> None:
    """It is not tried over and over in vain."""
    shell = ahead()
    shell.declare("a")
    shell.fail_load("a")
    assert shell.loads() == ["a"]
    request = shell.ask("a")
    shell.settle()
    assert request in shell.leases


def test_under_pressure_the_unused_prefetch_goes_first() -> None:
    """Then what is idle, then nothing is admitted; pins and leases stay."""
    engines = [engine(n, 20) for n in ("pin", "leased", "idle", "ahead")]
    shell = shell_of(100, engines, [model("pin", pinned=True)], prefetch="load")
    shell.settle()
    shell.use("idle")
    lease = shell.serve("leased")
    shell.declare("ahead")
    shell.settle()
    shell.send(ev.DeviceMeasured("gpu", 60, 10, 20))
    assert shell.unloading.keys() == {"ahead"}
    shell.settle()
    assert shell.loads().count("ahead") == 1, "what is short is not filled ahead again"
    shell.send(ev.DeviceMeasured("gpu", 40, 5, 20))
    assert shell.unloading.keys() == {"idle"}
    shell.settle()
    shell.send(ev.DeviceMeasured("gpu", 20, 0, 20))
    waits = shell.ask("idle", "other")
    assert waits in shell.waiting
    assert shell.resident() == {"pin", "leased"}
    shell.send(ev.DeviceMeasured("gpu", 100, 60, 20))
    shell.settle()
    assert waits in shell.leases
    assert lease in shell.leases


def test_low_memory_is_said_once_and_its_end_once() -> None:
    """It has recovered with a tenth of the reserve to spare, so that it does not flicker."""
    shell = ahead()
    said = []
    for free in (30, 19, 10, 21, 19, 22, 21):
        actions = shell.send(ev.DeviceMeasured("gpu", 100, free, 20))
        said += [(free, a.low) for a in actions if isinstance(a, act.LowMemory)]
    assert said == [(19, True), (22, False)]
