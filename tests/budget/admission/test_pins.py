"""Pins: never evicted, loaded at start, and they fit together or the configuration does not hold."""

from __future__ import annotations

import pytest

from budget import events as ev
from budget.books.engines import EngineSpec, PlacementOption
from budget.books.states import State
from budget.core import BudgetCore
from budget.errors import AdmissionDenied, ConfigError, UnknownModel
from tests.budget.machine import Shell, engine, model, shell_of


def test_pinned_models_load_when_the_keeper_starts_and_not_before() -> None:
    """Constructing a core acts on nothing; `Started` does."""
    core = BudgetCore({"gpu": 100}, [model("p", pinned=True)], [engine("p", 50)])
    shell = Shell(core)
    assert not shell.loading
    shell.send(ev.Started())
    assert shell.loading.keys() == {"p"}


def test_a_pinned_model_is_never_evicted() -> None:
    """Not for room, not for age, not by a hint; others are refused or wait."""
    shell = shell_of(
        100,
        [engine("p", 50), engine("a", 50), engine("b", 50)],
        [model("p", pinned=True, keep_alive_s=0.0)],
        max_wait_s=2.0,
    )
    shell.settle()
    shell.use("p")
    held = shell.serve("a")
    shell.ask("b")
    shell.advance(10.0)
    shell.end(held)
    shell.settle()
    assert shell.resident() == {"p", "b"}
    with pytest.raises(AdmissionDenied, match="pinned"):
        shell.send(ev.HintGiven("unload", "p"))


def test_pins_that_do_not_fit_together_are_a_config_error_with_numbers() -> None:
    """Before anything is loaded."""
    models = [model("p", pinned=True), model("q", pinned=True)]
    with pytest.raises(ConfigError, match="do not fit together") as caught:
        BudgetCore({"gpu": 100}, models, [engine("p", 60), engine("q", 50)])
    facts = caught.value.facts
    assert facts["limit_bytes"] == 100
    assert {facts["reserved_bytes"], facts["requested_bytes"]} == {60, 50}


def test_a_pin_without_a_placement_is_a_config_error() -> None:
    """It could never be loaded."""
    with pytest.raises(ConfigError, match="no placement"):
        BudgetCore({"gpu": 100}, [model("p", pinned=True)], [EngineSpec("p", ())])


@pytest.mark.parametrize("order", [("rigid", "flexible"), ("flexible", "rigid")])
def test_pins_that_fit_together_in_some_way_are_found_in_any_order(order: tuple[str, str]) -> None:
    """A pinned model that can go elsewhere does, whichever is named first."""
    specs = {
        "rigid": engine("rigid", 60),
        "flexible": EngineSpec(
            "flexible",
            (PlacementOption((("gpu", 60),), 1.0), PlacementOption((("host", 60),), 1.0, tier=1)),
        ),
    }
    models = [model(name, pinned=True) for name in order]
    shell = shell_of({"gpu": 100, "host": 100}, [specs[name] for name in order], models)
    shell.settle()
    assert shell.resident() == {"rigid", "flexible"}


def test_a_runtime_pin_protects_and_unpin_ends_it() -> None:
    """A pin is an outcome: loaded and protected."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    pin = shell.ask("a", want="pin")
    shell.settle()
    assert shell.outcomes[pin] == "granted"
    refused = shell.ask("b")
    assert shell.outcomes[refused] == "NeverFits"
    assert shell.error(refused)["facts"]["reserved_bytes"] == 80
    shell.send(ev.HintGiven("unpin", "a"))
    shell.use("b")
    assert shell.resident() == {"b"}


def test_a_runtime_pin_that_does_not_fit_beside_the_others_is_refused() -> None:
    """And leaves no trace."""
    shell = shell_of(100, [engine("p", 60), engine("a", 60)], [model("p", pinned=True)])
    shell.settle()
    assert shell.outcomes[shell.ask("a", want="pin")] == "NeverFits"
    assert not shell.core.state.residents["a"].pins


def test_a_pin_waits_where_the_engine_is_if_others_are_then_shut_out() -> None:
    """What counts is where it is resident, not where it might be: it is pinned once it is there."""
    flexible = EngineSpec(
        "flexible",
        (PlacementOption((("gpu", 60),), 1.0), PlacementOption((("host", 60),), 1.0, tier=1)),
    )
    shell = shell_of({"gpu": 100, "host": 100}, [flexible, engine("p", 60)])
    shell.use("flexible")
    held = shell.serve("flexible")
    pin = shell.ask("p", want="pin")
    behind = shell.ask("flexible", want="pin")
    assert {pin, behind} <= shell.waiting
    shell.end(held)
    shell.settle()
    assert shell.outcomes[pin] == shell.outcomes[behind] == "granted"
    assert shell.core.state.residents["flexible"].bookings == (("host", 60),)


def test_a_pin_that_is_withdrawn_before_it_was_granted_is_gone() -> None:
    """Also after the next reading of the configuration."""
    specs = (engine("a", 50),)
    models = (model("a"),)
    shell = shell_of(100, specs, models)
    pin = shell.ask("a", want="pin")
    shell.send(ev.RequestCancelled(pin))
    assert not shell.core.state.residents["a"].pins
    shell.send(ev.Reconfigured(models, specs, {"gpu": 100}))
    assert not shell.core.state.residents["a"].pins


def test_of_two_pins_that_wait_one_withdrawn_leaves_the_other() -> None:
    """The second caller keeps what it was promised."""
    shell = shell_of(100, [engine("a", 50)])
    first, second = shell.ask("a", want="pin"), shell.ask("a", "other", want="pin")
    shell.send(ev.RequestCancelled(first))
    shell.settle()
    assert shell.outcomes[second] == "granted"
    assert shell.core.state.residents["a"].pins == {"a"}


def test_a_shared_engine_is_pinned_if_any_of_its_names_is() -> None:
    """Unpinning one name leaves the other's pin."""
    names = [model("x", "a", pinned=True), model("y", "a"), model("z", "a", pinned=True)]
    shell = shell_of(100, [engine("a", 50)], names)
    shell.settle()
    shell.send(ev.HintGiven("unpin", "x"))
    assert shell.core.state.residents["a"].pins == {"z"}
    shell.send(ev.HintGiven("unpin", "y"))
    assert shell.core.state.residents["a"].pins == {"z"}
    shell.send(ev.HintGiven("unpin", "z"))
    assert not shell.core.state.residents["a"].pins


def test_pinning_a_draining_engine_frees_it_and_decides_the_claim_anew() -> None:
    """Its own requests are served at once; one that counted on its bytes gets an error."""
    shell = shell_of(100, [engine("a", 80, slots=2), engine("c", 80)], max_wait_s=2.0)
    shell.serve("a")
    lone = shell.ask("c")
    shell.advance(2.0)
    behind = shell.ask("a")
    assert behind in shell.waiting
    shell.ask("a", want="pin")
    assert shell.outcomes[behind] == "granted"
    assert shell.outcomes[lone] == "NeverFits"


def test_a_pinned_engine_drains_others_at_once() -> None:
    """A pin does not wait for max_wait."""
    shell = shell_of(100, [engine("a", 80), engine("p", 80), engine("b", 80)])
    held = shell.serve("a")
    pin = shell.ask("p", want="pin")
    assert shell.drains_for("a") == "p"
    assert shell.outcomes[shell.ask("b")] == "NeverFits"
    shell.end(held)
    shell.settle()
    assert shell.outcomes[pin] == "granted"


def test_a_pin_whose_load_fails_is_denied_and_ends() -> None:
    """The caller hears why; nothing stays pinned behind its back."""
    shell = shell_of(100, [engine("a", 50)])
    pin = shell.ask("a", want="pin")
    shell.fail_load("a")
    assert shell.outcomes[pin] == "LoadFailed"
    assert not shell.core.state.residents["a"].pins
    assert shell.state("a") is State.FAILED


def test_hints_about_unknown_models_raise() -> None:
    """A typing error is not ignored."""
    shell = shell_of(100, [engine("a", 50)])
    with pytest.raises(UnknownModel):
        shell.send(ev.HintGiven("release", "zebra"))


def test_a_pin_ends_with_the_client_that_made_it() -> None:
    """A client that is killed between pin and unpin leaves nothing pinned."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.serve_pin("a", "mine")
    shell.gone("mine")
    assert not shell.core.state.residents["a"].pins
    shell.use("b", "other")
    assert shell.resident() == {"b"}


def test_a_pin_that_persists_outlives_its_client_until_unpin() -> None:
    """As the command line pins."""
    shell = shell_of(100, [engine("a", 80)])
    shell.serve_pin("a", "mine", persist=True)
    shell.gone("mine")
    assert shell.core.state.residents["a"].pins == {"a"}
    shell.send(ev.HintGiven("unpin", "a"))
    assert not shell.core.state.residents["a"].pins


def test_of_two_clients_pins_of_one_model_the_last_keeps_it() -> None:
    """It stays pinned while any client holds it."""
    shell = shell_of(100, [engine("a", 80)])
    shell.serve_pin("a", "one")
    shell.serve_pin("a", "two")
    shell.gone("one")
    assert shell.core.state.residents["a"].pins == {"a"}
    shell.gone("two")
    assert not shell.core.state.residents["a"].pins


def test_unpin_ends_the_pins_of_every_client() -> None:
    """One word for all of them; clients that go afterwards change nothing."""
    shell = shell_of(100, [engine("a", 80)], [model("a", pinned=True)])
    shell.settle()
    shell.serve_pin("a", "one")
    shell.serve_pin("a", "two", persist=True)
    shell.send(ev.HintGiven("unpin", "a"))
    assert not shell.core.state.residents["a"].pins
    shell.gone("one")
    assert shell.state("a") is State.IDLE


def test_a_configured_pin_stays_when_clients_that_pinned_the_model_too_are_gone() -> None:
    """Also over a reading of the configuration that changes nothing."""
    specs, models = (engine("a", 50),), (model("a", pinned=True),)
    shell = shell_of(100, specs, models)
    shell.settle()
    shell.serve_pin("a", "mine")
    shell.send(ev.Reconfigured(models, specs, {"gpu": 100}))
    shell.gone("mine")
    assert shell.core.state.residents["a"].pins == {"a"}


def test_a_clients_pin_stays_when_the_configured_one_is_gone() -> None:
    """Until that client goes."""
    specs = (engine("a", 50),)
    shell = shell_of(100, specs, [model("a", pinned=True)])
    shell.settle()
    shell.serve_pin("a", "mine")
    shell.send(ev.Reconfigured((model("a"),), specs, {"gpu": 100}))
    assert shell.core.state.residents["a"].pins == {"a"}
    shell.gone("mine")
    assert not shell.core.state.residents["a"].pins


def test_a_pin_that_waits_ends_with_its_client_and_frees_what_drained_for_it() -> None:
    """Nothing stays promised to a client that is gone."""
    shell = shell_of(100, [engine("a", 80), engine("p", 80)])
    shell.serve("a", "other")
    pin = shell.ask("p", "mine", want="pin")
    assert shell.drains_for("a") == "p"
    shell.gone("mine")
    assert shell.outcomes[pin] == "Cancelled"
    assert shell.drains_for("a") is None


def test_a_pin_that_waits_counts_beside_one_that_is_held() -> None:
    """The load that a pin waits for fails: the pin that another client holds already stays."""
    shell = shell_of(100, [engine("a", 50)])
    shell.serve_pin("a", "one")
    shell.kill("a")
    waits = shell.ask("a", "two", want="pin")
    shell.send(ev.RequestCancelled(waits))
    assert shell.core.state.residents["a"].pins == {"a"}
    shell.gone("one")
    assert not shell.core.state.residents["a"].pins


def short(shell: Shell) -> str:
    """A client's pin that leaves no room for `b`; then another client asks for `b`. Returns its id."""
    shell.serve_pin("a", "short")
    return shell.ask("b", "other")


def test_a_request_that_another_clients_pin_keeps_out_waits_and_is_served_when_that_ends() -> None:
    """It is not told that it never fits."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], max_wait_s=2.0)
    request = short(shell)
    shell.advance(60.0)
    assert request in shell.waiting
    shell.gone("short")
    shell.settle()
    assert shell.outcomes[request] == "granted"
    assert shell.resident() == {"b"}


def test_a_request_that_waits_for_a_pin_to_end_keeps_no_other_from_being_served() -> None:
    """Not from bytes, however old it is, and not from the pinned engine."""
    engines = [engine("a", 80, slots=2), engine("b", 80), engine("c", 20)]
    shell = shell_of(100, engines, max_wait_s=2.0)
    request = short(shell)
    shell.advance(10.0)
    shell.use("c", "other")
    shell.use("a", "other")
    assert request in shell.waiting


def test_a_deadline_that_passes_behind_a_pin_says_whose_pin_it_is() -> None:
    """With the clients, for a user that looks for the culprit."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.serve_pin("a", "short")
    request = shell.ask("b", "other", deadline=5.0)
    shell.advance(5.0)
    error = shell.error(request)
    assert error["error"] == "DeadlineExceeded"
    assert "the pin of a (client short)" in error["message"]
    assert [(p["model"], p["clients"]) for p in error["facts"]["pins"]] == [("a", ["short"])]


def test_errors_about_pins_name_the_programs_that_hold_them() -> None:
    """A client's number does not tell the user which process to end."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.ask("a", "c4", want="pin", owner="process 4711 (python agent.py)")
    shell.settle()
    request = shell.ask("b", "c5", deadline=5.0)
    shell.advance(5.0)
    error = shell.error(request)
    assert "the pin of a (client c4 of process 4711 (python agent.py))" in error["message"]
    assert error["facts"]["pins"][0]["programs"] == {"c4": "process 4711 (python agent.py)"}


@pytest.mark.parametrize("lasting", ["configured", "persistent", "own"])
def test_what_cannot_fit_beside_pins_that_last_is_told_at_once_whose_they_are(lasting: str) -> None:
    """Waiting for the configuration, for a pin that stays, or for oneself would be in vain."""
    pinned = lasting == "configured"
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], [model("a", pinned=pinned)])
    shell.settle()
    if not pinned:
        shell.serve_pin("a", "one", persist=lasting == "persistent")
    request = shell.ask("b", "one" if lasting == "own" else "other")
    error = shell.error(request)
    assert error["error"] == "NeverFits"
    pin = error["facts"]["pins"][0]
    assert (pin["model"], pin["configured"], pin["persistent"]) == (
        "a",
        pinned,
        lasting == "persistent",
    )
    assert {"configured": "configured", "persistent": "persistent", "own": "client one"}[
        lasting
    ] in error["message"]


def test_a_request_that_waits_for_a_pin_to_end_is_denied_when_the_pin_comes_to_last() -> None:
    """The configuration pins the model as well: now it never fits."""
    specs = (engine("a", 80), engine("b", 80))
    shell = shell_of(100, specs)
    request = short(shell)
    models = (model("a", pinned=True), model("b"))
    shell.send(ev.Reconfigured(models, specs, {"gpu": 100}))
    assert shell.outcomes[request] == "NeverFits"


def test_a_pin_that_another_clients_pin_keeps_out_is_made_when_that_ends() -> None:
    """Until then it protects nothing and holds up no request for the same model."""
    both = EngineSpec("b", (PlacementOption((("gpu", 80),), 1.0),), slots=2)
    shell = shell_of(100, [engine("a", 80), both, engine("c", 20)])
    shell.serve_pin("a", "short")
    pin, lease = shell.ask("b", "other", want="pin"), shell.ask("b", "third")
    assert not shell.core.state.residents["b"].pins
    shell.use("c")
    shell.gone("short")
    shell.settle()
    assert shell.outcomes[pin] == shell.outcomes[lease] == "granted"
    assert shell.core.state.residents["b"].pins == {"b"}


def test_a_pin_that_waits_for_another_to_end_ends_with_its_client() -> None:
    """And leaves no trace."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)])
    shell.serve_pin("a", "short")
    pin = shell.ask("b", "other", want="pin")
    shell.gone("other")
    assert shell.outcomes[pin] == "Cancelled"
    shell.gone("short")
    assert not shell.loading


def test_what_waits_for_a_pin_to_end_counts_in_the_bounded_queue() -> None:
    """As any other request."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], max_queue=1)
    short(shell)
    assert shell.outcomes[shell.ask("b", "third", want="pin")] == "QueueFull"


def test_other_programs_and_a_short_pin_together_keep_a_request_waiting() -> None:
    """Without the pin it would fit into what other programs leave."""
    shell = shell_of(100, [engine("a", 40), engine("b", 50)], max_wait_s=2.0)
    shell.serve_pin("a", "short")
    shell.send(ev.DeviceMeasured("gpu", 80, 40))
    request = shell.ask("b", "other")
    shell.advance(10.0)
    assert request in shell.waiting
    shell.gone("short")
    shell.settle()
    assert shell.outcomes[request] == "granted"


def test_a_program_does_not_wait_for_its_own_pin_for_ever() -> None:
    """Made over another connection: perhaps another thread ends it soon, perhaps it is the same one."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], max_wait_s=4.0)
    shell.ask("a", "first", want="pin", owner="4711")
    shell.settle()
    soon, late = shell.ask("b", "second", owner="4711"), shell.ask("b", "else", owner="4712")
    patient = shell.ask("b", "second", owner="4711", deadline=9.0)
    shell.advance(4.0)
    error = shell.error(soon)
    assert (error["error"], error["facts"]["pins"][0]["clients"]) == ("AdmissionDenied", ["first"])
    assert {late, patient} == shell.waiting
    shell.gone("first")
    shell.settle()
    assert shell.leases.keys() <= {late, patient}


def test_a_programs_own_pin_that_ends_in_time_lets_its_request_in() -> None:
    """Two threads of one program are as two programs for so long."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], max_wait_s=4.0)
    shell.ask("a", "first", want="pin", owner="4711")
    shell.settle()
    request = shell.ask("b", "second", owner="4711")
    shell.advance(3.0)
    shell.gone("first")
    shell.settle()
    assert shell.outcomes[request] == "granted"


def test_a_pin_that_is_denied_lets_in_at_once_what_it_kept_out() -> None:
    """Not only at the next event, which may never come."""
    shell = shell_of(100, [engine("large", 85), engine("small", 20)], max_wait_s=4.0)
    shell.send(ev.DeviceMeasured("gpu", 40, 40))
    denied = shell.ask("large", "one", want="pin")
    kept_out = shell.ask("small", "two", want="pin")
    shell.advance(4.0)
    assert shell.outcomes[denied] == "AdmissionDenied"
    assert shell.loading.keys() == {"small"}
    shell.settle()
    assert shell.outcomes[kept_out] == "granted"
