"""Loads that fail, engines that die, devices that are over their limit."""

from __future__ import annotations

import pytest

from budget import actions as act
from budget import events as ev
from budget.books.engines import EngineSpec, PlacementOption
from budget.books.states import State
from budget.errors import EngineDied, InternalError, LoadFailed, error_from_wire
from tests.budget.machine import Shell, engine, model, shell_of

TWO_SIZES = EngineSpec(
    "a", (PlacementOption((("gpu", 80),), 1.0), PlacementOption((("gpu", 40),), 1.0))
)


def test_a_failed_load_denies_waiting_requests_and_frees_the_bytes() -> None:
    """With the engine's own error; the next request tries again at once."""
    shell = shell_of(100, [engine("a", 50)])
    first, second = shell.ask("a"), shell.ask("a")
    shell.fail_load("a")
    assert shell.outcomes == {first: "LoadFailed", second: "LoadFailed"}
    assert shell.error(first)["message"] == "scripted"
    assert shell.core.ledgers()[0].reserved_bytes == 0
    assert shell.ask("a") in shell.waiting
    assert shell.loading.keys() == {"a"}


def test_failures_in_a_row_are_refused_without_a_load_for_a_while() -> None:
    """A model that cannot load does not cost every request a load."""
    shell = shell_of(100, [engine("a", 50)])
    for _ in range(2):
        shell.ask("a")
        shell.fail_load("a")
    refused = shell.ask("a")
    assert shell.outcomes[refused] == "LoadFailed"
    assert len(shell.loads()) == 2
    error = error_from_wire(shell.error(refused))
    assert error.retry_after_s == 1.0
    assert str(error) == "scripted. That failed 2 times in a row, and is tried again in 1.0 s."
    shell.advance(error.retry_after_s)
    shell.use("a")
    assert shell.core.state.residents["a"].failures == 0


def test_who_comes_in_the_pause_after_deaths_is_not_told_that_the_engine_starts_at_once() -> None:
    """The hint of the request that was cut off would be wrong here; the log's end is still there."""
    shell = shell_of(100, [engine("a", 50)])
    died = EngineDied("gone.", hint="The next request starts it again.", log_tail=["a line"])
    for _ in range(2):
        shell.ask("a")
        shell.fail_load("a", died)
    error = error_from_wire(shell.error(shell.ask("a")))
    assert error.facts["log_tail"] == ["a line"]
    assert "starts it again" not in str(error)
    assert str(error).endswith("That failed 2 times in a row, and is tried again in 1.0 s.")


def test_out_of_memory_is_tried_once_on_a_smaller_placement() -> None:
    """Waiting requests are served by the smaller one and get no error."""
    shell = shell_of(100, [TWO_SIZES])
    request = shell.ask("a")
    shell.fail_load("a", out_of_memory=True)
    assert shell.loading["a"].option_index == 1
    shell.settle()
    assert shell.outcomes[request] == "granted"
    assert shell.core.ledgers()[0].reserved_bytes == 40


def test_a_second_out_of_memory_is_a_typed_failure_with_balanced_books() -> None:
    """And the next request starts over with the first placement."""
    shell = shell_of(100, [TWO_SIZES])
    request = shell.ask("a")
    shell.fail_load("a", out_of_memory=True)
    shell.fail_load("a", out_of_memory=True)
    assert shell.outcomes[request] == "OutOfMemory"
    assert shell.core.ledgers()[0].reserved_bytes == 0
    shell.ask("a")
    assert shell.loading["a"].option_index == 0


def test_out_of_memory_with_no_smaller_placement_that_fits_says_so() -> None:
    """The failure is out of memory, never 'does not fit', when pins hold what the next needs."""
    tiers = (PlacementOption((("gpu", 50),), 1.0), PlacementOption((("host", 80),), 1.0, tier=1))
    shell = shell_of(
        {"gpu": 100, "host": 100},
        [EngineSpec("a", tiers), engine("p", 60, device="host")],
        [model("p", pinned=True)],
    )
    shell.settle()
    request = shell.ask("a")
    shell.fail_load("a", out_of_memory=True)
    assert shell.outcomes[request] == "OutOfMemory"


def test_out_of_memory_of_a_split_takes_fewer_layers_although_the_host_takes_more() -> None:
    """What the device refused moves to the host; only the device that refused must be asked less."""
    split = EngineSpec(
        "a",
        tuple(
            PlacementOption((("gpu", on_gpu), ("host", 100 - on_gpu)), 1.0, tier)
            for tier, on_gpu in enumerate((80, 40, 0))
        ),
    )
    shell = shell_of({"gpu": 100, "host": 100}, [split])
    request = shell.ask("a")
    shell.fail_load("a", out_of_memory=True)
    assert shell.loading["a"].option_index == 1
    shell.fail_load("a", out_of_memory=True)
    assert shell.outcomes[request] == "OutOfMemory"
    assert [view.reserved_bytes for view in shell.core.ledgers()] == [0, 0]


def test_out_of_memory_of_the_host_is_not_tried_on_a_placement_that_asks_it_for_more() -> None:
    """Fewer layers elsewhere are more bytes on the host, which had too few already."""
    split = EngineSpec(
        "a",
        (
            PlacementOption((("gpu", 80), ("host", 20)), 1.0),
            PlacementOption((("host", 100),), 1.0, 1),
        ),
    )
    shell = shell_of({"gpu": 100, "host": 100}, [split])
    request = shell.ask("a")
    load = shell.loading["a"]
    error = {"error": "OutOfMemory", "message": "scripted"}
    shell.send(ev.LoadEndedBadly("a", load.generation, error, True, "host"))
    assert shell.outcomes[request] == "OutOfMemory"


def test_a_dead_engine_revokes_its_leases_with_its_error() -> None:
    """The holder hears why; giving the lease back afterwards is no error, once."""
    shell = shell_of(100, [engine("a", 50)])
    lease = shell.serve("a")
    shell.kill("a")
    revoked = [a for a in shell.log if isinstance(a, act.Revoke)]
    assert [(r.request_id, r.error["error"]) for r in revoked] == [(lease, "EngineDied")]
    assert shell.core.ledgers()[0].reserved_bytes == 0
    shell.send(ev.LeaseEnded(lease, "c"))


def test_waiting_requests_get_a_new_engine_once_and_then_are_denied() -> None:
    """One death can be chance; the second without a request served is not."""
    shell = shell_of(100, [engine("a", 50)])
    shell.serve("a")
    waits = shell.ask("a")
    shell.kill("a")
    assert shell.loading.keys() == {"a"}
    shell.finish_load("a")
    assert waits in shell.leases
    behind = shell.ask("a")
    shell.kill("a")
    assert shell.outcomes[behind] == "EngineDied"
    assert not shell.loading
    told = next(a.error for a in shell.log if isinstance(a, act.Deny) and a.request_id == behind)
    assert told["facts"]["suspected"] is False
    assert told["message"].endswith("This request had not reached it.")


def test_a_lease_that_ended_well_forgives_earlier_deaths() -> None:
    """A death a day is not a death in a row."""
    shell = shell_of(100, [engine("a", 50)])
    for _ in range(3):
        shell.use("a")
        shell.serve("a")
        waits = shell.ask("a")
        shell.kill("a")
        shell.settle()
        shell.end(waits)
    assert shell.state("a") is State.IDLE


def test_an_engine_that_dies_at_once_is_not_restarted_by_every_request() -> None:
    """Loads succeed, so only the deaths in a row can hold them back."""
    shell = shell_of(100, [engine("a", 50)])
    for _ in range(2):
        shell.serve("a")
        shell.kill("a")
    assert shell.outcomes[shell.ask("a")] == "EngineDied"
    assert len(shell.loads()) == 2
    shell.advance(1.0)
    shell.use("a")


@pytest.mark.parametrize("pinned", [False, True])
def test_the_request_after_a_death_works(pinned: bool) -> None:
    """Also for a pinned engine that backs off before it reloads by itself."""
    shell = shell_of(100, [engine("a", 50)], [model("a", pinned=pinned)])
    shell.settle()
    shell.serve("a")
    shell.kill("a")
    shell.use("a")


def test_a_pinned_engine_reloads_by_itself_with_growing_pauses() -> None:
    """Half a second first, doubling to 30 s, and no end of trying."""
    shell = shell_of(100, [engine("p", 50)], [model("p", pinned=True)])
    pauses = []
    for _ in range(12):
        shell.fail_load("p")
        failed_at = shell.now
        while "p" not in shell.loading:
            assert shell.timer is not None
            shell.advance(shell.timer - shell.now)
        pauses.append(shell.now - failed_at)
    assert pauses[:7] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(pauses[7:]) == {30.0}


def test_a_pinned_engine_that_dies_after_every_load_backs_off_too() -> None:
    """A load that ends well is no success when no request is served."""
    shell = shell_of(100, [engine("p", 50)], [model("p", pinned=True)])
    pauses = []
    for _ in range(4):
        shell.finish_load("p")
        shell.kill("p")
        died_at = shell.now
        while "p" not in shell.loading:
            assert shell.timer is not None
            shell.advance(shell.timer - shell.now)
        pauses.append(shell.now - died_at)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_thousands_of_failures_in_a_row_do_not_overflow() -> None:
    """A keeper runs for months."""
    shell = shell_of(100, [engine("p", 50)], [model("p", pinned=True)])
    shell.core.state.residents["p"].failures = 5000
    shell.fail_load("p")
    assert shell.timer == 30.0


def over(shell: Shell) -> list[bool]:
    """The alerts so far."""
    return [a.over for a in shell.log if isinstance(a, act.Alert)]


def test_over_the_limit_admits_nothing_and_says_so_in_and_out() -> None:
    """A correction passes the limit; only a lease's end resolves it."""
    shell = shell_of(100, [engine("a", 60), engine("b", 20), engine("c", 10)])
    lease = shell.serve("a")
    shell.send(ev.EngineMeasured("a", 1, (("gpu", 110),)))
    assert over(shell) == [True]
    waits = shell.ask("c")
    assert shell.loading == {}
    shell.end(lease)
    assert shell.unloading.keys() == {"a"}
    shell.settle()
    assert over(shell) == [True, False]
    assert shell.outcomes[waits] == "granted"


def test_over_the_limit_sheds_idle_engines_and_no_more_than_needed() -> None:
    """Leased ones stay; of the idle only those whose bytes are missing leave."""
    shell = shell_of(100, [engine("a", 40), engine("b", 20), engine("c", 40)])
    shell.serve("a")
    shell.use("b")
    shell.advance(1.0)
    shell.use("c")
    shell.send(ev.DeviceMeasured("gpu", 65))
    assert shell.unloading.keys() == {"c"}, "b alone would not do, and c alone does"
    shell.settle()
    assert shell.resident() == {"a", "b"}
    assert over(shell) == [True, False]


def test_a_busy_engine_over_the_limit_is_drained_for_an_aged_request() -> None:
    """Over the limit is not a way to keep others out for ever."""
    shell = shell_of(100, [engine("a", 60, slots=2), engine("c", 50)], max_wait_s=2.0)
    running = shell.serve("a")
    shell.send(ev.EngineMeasured("a", 1, (("gpu", 110),)))
    lone = shell.ask("c")
    shell.advance(2.0)
    assert shell.ask("a") in shell.waiting, "no new lease on what drains"
    shell.end(running)
    shell.settle()
    assert shell.outcomes[lone] == "granted"


def test_a_load_that_turns_out_bigger_is_corrected() -> None:
    """The books follow the measurement, and so does the next admission."""
    shell = shell_of(100, [engine("a", 50), engine("b", 50)])
    shell.ask("a", want="load")
    shell.finish_load("a", (("gpu", 60),))
    assert shell.core.ledgers()[0].reserved_bytes == 60
    shell.ask("b")
    assert shell.unloading.keys() == {"a"}


def test_a_correction_downwards_admits_a_waiting_request() -> None:
    """Freed bytes are an event."""
    shell = shell_of(100, [engine("a", 60), engine("b", 50)])
    shell.serve("a")
    shell.ask("b")
    shell.send(ev.EngineMeasured("a", 1, (("gpu", 50),)))
    assert shell.loading.keys() == {"b"}


@pytest.mark.parametrize("bookings", [(("nowhere", 1),), (("gpu", -1),), (("gpu", 1), ("gpu", 2))])
def test_an_impossible_measurement_raises_and_leaves_the_books(
    bookings: tuple[tuple[str, int], ...],
) -> None:
    """A bug of the measuring side does not become a bug of the books."""
    shell = shell_of(100, [engine("a", 60)])
    shell.use("a")
    with pytest.raises(InternalError, match="cannot take"):
        shell.send(ev.EngineMeasured("a", 1, bookings))
    shell.check()
    with pytest.raises(InternalError, match="unknown device"):
        shell.send(ev.DeviceMeasured("nowhere", 1))


def test_an_event_of_a_generation_that_is_over_raises_with_the_last_events() -> None:
    """A keeper that mixes up generations hears of it."""
    shell = shell_of(100, [engine("a", 60)])
    shell.use("a")
    with pytest.raises(InternalError, match="which is over") as caught:
        shell.send(ev.EngineGone("a", 7, {"error": "EngineDied"}))
    assert "LOADING-LOADED->IDLE" in caught.value.hint


def test_errors_of_the_pause_say_how_long_it_lasts_and_not_that_the_next_request_starts_it() -> (
    None
):
    """From the second failure in a row on: in words, and in `retry_after_s`; before there is no pause."""
    shell = shell_of(100, [engine("a", 50)])
    said = "The next request starts it again. Its last lines are in `log_tail`."

    died = EngineDied("a ended.", hint=said).to_wire()
    shell.serve("a")
    for _ in range(2):
        behind = shell.ask("a")
        shell.send(ev.EngineGone("a", shell.core.state.residents["a"].generation, died))
        shell.settle()
    assert error_from_wire(shell.error(behind)).retry_after_s == 1.0
    shell.advance(0.25)
    refused = error_from_wire(shell.error(shell.ask("a")))
    assert isinstance(refused, EngineDied)
    assert refused.retry_after_s == refused.facts["retry_after_s"] == 0.75
    assert refused.hint == (
        "Its last lines are in `log_tail`."
        " That failed 2 times in a row, and is tried again in 0.8 s."
    )
    assert "starts it again" not in str(refused)
    shell.advance(0.75)
    assert shell.ask("a") in shell.waiting


def test_a_load_that_failed_twice_says_how_long_it_is_left_alone() -> None:
    """With what the failure itself advises behind it."""
    shell = shell_of(100, [engine("a", 50)])
    failed = LoadFailed("a did not load.", hint="Check the file.").to_wire()
    told = []
    for _ in range(2):
        request = shell.ask("a")
        shell.send(ev.LoadEndedBadly("a", shell.loading.pop("a").generation, failed))
        told.append(error_from_wire(shell.error(request)))
    first, second = told
    assert (first.retry_after_s, first.hint) == (None, "Check the file.")
    assert second.retry_after_s == 1.0
    assert (
        second.hint == "Check the file. That failed 2 times in a row, and is tried again in 1.0 s."
    )
