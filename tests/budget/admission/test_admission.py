"""Which requests are admitted, where, and which are refused with which numbers."""

from __future__ import annotations

from budget import actions as act
from budget import events as ev
from budget.books.engines import EngineSpec, PlacementOption
from budget.books.states import State
from tests.budget.machine import engine, model, shell_of


def test_never_fits_gives_three_numbers_and_touches_nothing() -> None:
    """What can never fit beside the pins is denied at once; no load, no eviction, no timer."""
    shell = shell_of(
        100,
        [engine("pin", 30), engine("idle", 40), engine("big", 80)],
        [model("pin", pinned=True)],
    )
    shell.settle()
    shell.use("idle")
    before = len(shell.log)
    request = shell.ask("big")
    assert [type(a) for a in shell.log[before:]] == [act.Deny]
    error = shell.error(request)
    assert error["error"] == "NeverFits"
    facts = error["facts"]
    numbers = (facts["limit_bytes"], facts["reserved_bytes"], facts["requested_bytes"])
    assert numbers == (100, 30, 80)
    assert shell.resident() == {"pin", "idle"}


def test_exactly_the_limit_fits_and_one_byte_more_never_does() -> None:
    """The limit is inclusive."""
    shell = shell_of(100, [engine("full", 100), engine("more", 101)])
    assert shell.outcomes[shell.ask("more")] == "NeverFits"
    shell.use("full")
    assert shell.core.ledgers()[0].free_bytes == 0


def test_a_deadline_that_has_passed_is_denied_without_a_load() -> None:
    """A request that is late on arrival costs no other request anything."""
    shell = shell_of(100, [engine("a", 50)])
    request = shell.ask("a", deadline=0.0)
    assert shell.outcomes[request] == "DeadlineExceeded"
    assert shell.loads() == []


def test_a_deadline_that_passes_while_waiting_is_denied_without_a_load() -> None:
    """The only engine is in use; the other is never loaded for the request that is late."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    held = shell.serve("a")
    late = shell.ask("b", deadline=3.0)
    shell.advance(2.9)
    assert late in shell.waiting
    shell.advance(0.2)
    assert shell.outcomes[late] == "DeadlineExceeded"
    assert shell.error(late)["facts"]["waited_s"] == 3.0
    shell.end(held)
    shell.settle()
    assert shell.loads() == ["a"]


def test_a_resident_engine_serves_even_a_late_request() -> None:
    """A lease that costs no waiting is granted whatever the deadline says."""
    shell = shell_of(100, [engine("a", 80)])
    shell.use("a")
    assert shell.outcomes[shell.ask("a", deadline=0.0)] == "granted"


def test_a_split_is_booked_on_both_devices_or_on_neither() -> None:
    """While one device lacks room, nothing is booked on the other."""
    split = EngineSpec("split", (PlacementOption((("gpu", 50), ("host", 50)), 1.0),))
    shell = shell_of({"gpu": 100, "host": 60}, [split, engine("other", 40, device="host")])
    held = shell.serve("other")
    waits = shell.ask("split")
    assert [view.reserved_bytes for view in shell.core.ledgers()] == [0, 40]
    shell.end(held)
    assert shell.unloading.keys() == {"other"}
    assert shell.core.ledgers()[0].reserved_bytes == 0
    shell.settle()
    assert shell.outcomes[waits] == "granted"
    assert [view.reserved_bytes for view in shell.core.ledgers()] == [50, 50]


def test_a_split_that_never_fits_names_the_device_that_lacks_the_bytes() -> None:
    """The numbers are those of the tightest device."""
    split = EngineSpec("split", (PlacementOption((("gpu", 50), ("host", 70)), 1.0),))
    shell = shell_of({"gpu": 100, "host": 60}, [split])
    facts = shell.error(shell.ask("split"))["facts"]
    assert (facts["device"], facts["limit_bytes"], facts["requested_bytes"]) == ("host", 60, 70)


def test_of_two_equal_devices_the_free_one_is_chosen_before_an_engine_leaves() -> None:
    """Placements of one tier are alternatives; no engine is evicted while one is free."""
    limits = {"gpu0": 100, "gpu1": 100}
    specs = [
        EngineSpec(
            name, (PlacementOption((("gpu0", 80),), 1.0), PlacementOption((("gpu1", 80),), 1.0))
        )
        for name in ("a", "b", "c")
    ]
    shell = shell_of(limits, specs)
    shell.use("a")
    shell.advance(1.0)
    shell.use("b")
    devices = {e.engine_id: e.bookings[0][0] for e in shell.core.state.residents if e.resident}
    assert devices == {"a": "gpu0", "b": "gpu1"}
    shell.advance(1.0)
    shell.use("c")
    assert shell.resident() == {"b", "c"}, "the least recently used of both devices left"


def test_the_tightest_of_two_free_devices_is_filled_first() -> None:
    """Large holes stay for large engines."""
    limits = {"gpu0": 100, "gpu1": 50}
    small = EngineSpec(
        "small", (PlacementOption((("gpu0", 40),), 1.0), PlacementOption((("gpu1", 40),), 1.0))
    )
    shell = shell_of(limits, [small, engine("large", 90, device="gpu0")])
    shell.use("small")
    shell.use("large")
    assert shell.resident() == {"small", "large"}


def test_a_higher_tier_is_used_only_when_the_lower_can_never_fit() -> None:
    """Whole on the GPU, even if an engine must leave; split only beside pins that stay."""
    tiers = (
        PlacementOption((("gpu", 80),), 1.0),
        PlacementOption((("gpu", 20), ("host", 60)), 1.0, tier=1),
    )
    specs = [EngineSpec("tiered", tiers), engine("other", 50)]
    shell = shell_of({"gpu": 100, "host": 100}, specs)
    shell.use("other")
    shell.use("tiered")
    assert shell.resident() == {"tiered"}
    assert shell.core.state.residents["tiered"].option_index == 0
    pinned = shell_of({"gpu": 100, "host": 100}, specs, [model("other", pinned=True)])
    pinned.settle()
    pinned.use("tiered")
    assert pinned.core.state.residents["tiered"].option_index == 1


def test_a_full_queue_refuses_the_next_request_and_says_how_long_it_is() -> None:
    """The bound counts requests that wait, not those that are served."""
    shell = shell_of(100, [engine("a", 50)], max_queue=2)
    shell.serve("a")
    shell.ask("a")
    shell.ask("a")
    full = shell.ask("a")
    assert shell.outcomes[full] == "QueueFull"
    assert shell.error(full)["facts"] == {"waiting": 2, "limit": 2}


def test_a_models_own_queue_bound_counts_its_name_only() -> None:
    """Two names on one engine have a bound each."""
    names = [model("x", "a"), model("y", "a")]
    shell = shell_of(100, [engine("a", 50)], names, max_queue_per_model=1)
    shell.serve("x")
    shell.ask("x")
    assert shell.outcomes[shell.ask("x")] == "QueueFull"
    assert shell.ask("y") in shell.waiting


def test_a_full_queue_refuses_no_request_that_need_not_wait() -> None:
    """What is resident and free is granted, and a resident model is 'loaded' at once."""
    shell = shell_of(100, [engine("a", 50), engine("b", 40)], max_queue=1)
    shell.use("b")
    shell.serve("a")
    shell.ask("a")
    assert shell.outcomes[shell.ask("b")] == "granted"
    assert shell.outcomes[shell.ask("a", want="load")] == "granted"
    assert shell.outcomes[shell.ask("a", want="pin")] == "granted"


def test_the_queue_bound_holds_for_an_engine_that_is_asked_to_leave() -> None:
    """A free slot on an engine that takes no more requests is no way past the bound."""
    shell = shell_of(100, [engine("a", 50, slots=2)], max_queue=1)
    shell.serve("a")
    shell.send(ev.HintGiven("unload", "a"))
    assert shell.ask("a") in shell.waiting
    assert shell.outcomes[shell.ask("a")] == "QueueFull"


def test_an_unknown_model_is_denied_with_the_names_that_exist() -> None:
    """The answer helps."""
    shell = shell_of(100, [engine("a", 50)])
    request = shell.ask("zebra")
    assert shell.outcomes[request] == "UnknownModel"
    assert "a" in shell.error(request)["hint"]


def test_an_engine_without_a_placement_is_refused() -> None:
    """A model that could not be placed is a typed refusal, not a crash."""
    shell = shell_of(100, [EngineSpec("nowhere", ())])
    assert shell.outcomes[shell.ask("nowhere")] == "LoadFailed"


def test_other_programs_taking_the_device_deny_after_max_wait() -> None:
    """They may leave, so the request waits; after max_wait the error names what holds the bytes."""
    shell = shell_of(100, [engine("a", 50)], max_wait_s=4.0)
    shell.send(ev.DeviceMeasured("gpu", 40))
    first, twin = shell.ask("a"), shell.ask("a")
    shell.advance(3.9)
    assert {first, twin} == shell.waiting
    shell.advance(0.2)
    assert shell.outcomes == {first: "AdmissionDenied", twin: "AdmissionDenied"}
    assert "leave 40 B of 100 B" in shell.error(first)["message"]
    assert shell.loads() == []


def test_other_programs_leaving_in_time_admit_at_once() -> None:
    """A measurement that finds room is an event like every other."""
    shell = shell_of(100, [engine("a", 50)], max_wait_s=4.0)
    shell.send(ev.DeviceMeasured("gpu", 40))
    request = shell.ask("a")
    shell.send(ev.DeviceMeasured("gpu", 60))
    shell.settle()
    assert shell.outcomes[request] == "granted"


def test_a_tier_that_others_hold_gives_way_to_the_next_after_max_wait() -> None:
    """A request is not left waiting for a device that others keep when another would do."""
    spec = EngineSpec(
        "a", (PlacementOption((("gpu", 50),), 1.0), PlacementOption((("host", 50),), 1.0, tier=1))
    )
    shell = shell_of({"gpu": 100, "host": 100}, [spec], max_wait_s=4.0)
    shell.send(ev.DeviceMeasured("gpu", 40))
    request = shell.ask("a")
    assert shell.loads() == []
    shell.advance(4.0)
    shell.settle()
    assert shell.outcomes[request] == "granted"
    assert shell.core.state.residents["a"].option_index == 1


def test_the_error_of_a_pressured_split_names_the_pressured_device() -> None:
    """The tightest device is judged by what was measured, not by the limits."""
    split = EngineSpec("a", (PlacementOption((("gpu", 50), ("host", 90)), 1.0),))
    shell = shell_of({"gpu": 100, "host": 100}, [split], max_wait_s=1.0)
    shell.send(ev.DeviceMeasured("gpu", 20))
    request = shell.ask("a")
    shell.advance(1.0)
    assert shell.error(request)["facts"]["device"] == "gpu"


def test_a_request_to_load_is_granted_without_a_slot() -> None:
    """`load` wants residency only; nothing is held afterwards."""
    shell = shell_of(100, [engine("a", 50)])
    request = shell.ask("a", want="load")
    shell.settle()
    assert shell.outcomes[request] == "granted"
    assert shell.state("a") is State.IDLE
    assert not shell.leases


def test_a_request_to_load_is_not_held_up_by_requests_for_a_slot() -> None:
    """It asks for no slot, so it needs none to come free."""
    shell = shell_of(100, [engine("a", 50)])
    shell.ask("a")
    behind = shell.ask("a")
    load = shell.ask("a", want="load")
    shell.settle()
    assert shell.outcomes[load] == "granted"
    assert behind in shell.waiting
