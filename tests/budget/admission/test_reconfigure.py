"""A configuration that is read anew keeps warm what did not change."""

from __future__ import annotations

import pytest

from budget import actions as act
from budget import events as ev
from budget.books.engines import EngineSpec, ModelSpec
from budget.books.states import State
from budget.errors import BadModelFile, ConfigError
from budget.settings import CoreSettings
from tests.budget.machine import Shell, engine, model, shell_of


def configure(
    shell: Shell, models: list[ModelSpec], engines: list[EngineSpec], limit: int = 100
) -> list[act.Action]:
    """Read these anew."""
    return shell.send(ev.Reconfigured(tuple(models), tuple(engines), {"gpu": limit}))


def test_what_did_not_change_stays_warm_and_what_is_gone_leaves() -> None:
    """No reload, no new generation for the one; the other is forgotten when it is out."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40)])
    shell.use("a")
    shell.use("b")
    configure(shell, [model("a")], [engine("a", 40)])
    assert shell.state("a") is State.IDLE
    assert shell.unloading.keys() == {"b"}
    shell.finish_unload("b")
    assert "b" not in shell.core.state.residents
    assert shell.outcomes[shell.ask("b")] == "UnknownModel"
    assert not shell.leases[shell.serve("a")].cold


def test_running_leases_of_a_model_that_is_gone_end_by_themselves() -> None:
    """Then its engine leaves."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40)])
    lease = shell.serve("b")
    configure(shell, [model("a")], [engine("a", 40)])
    assert shell.state("b") is State.LEASED
    shell.end(lease)
    assert shell.unloading.keys() == {"b"}


def test_waiting_requests_follow_their_model_to_its_new_engine() -> None:
    """In the order in which they came, also among requests that waited there before."""
    shell = shell_of(
        100, [engine("a", 60), engine("new", 60)], [model("m", "a"), model("n", "new")]
    )
    held = shell.serve("m")
    waits = shell.ask("m")
    shell.advance(1.0)
    there = shell.ask("n")
    configure(shell, [model("m", "new"), model("n", "new")], [engine("new", 60)])
    shell.end(held)
    shell.settle()
    assert waits in shell.leases
    assert shell.leases[waits].cold
    assert there in shell.waiting
    shell.end(waits)
    assert there in shell.leases


def test_requests_that_wait_for_a_model_that_is_gone_get_an_error() -> None:
    """Not left waiting."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    shell.serve("a")
    waits = shell.ask("b")
    configure(shell, [model("a")], [engine("a", 60)])
    assert shell.outcomes[waits] == "UnknownModel"


def test_a_load_under_way_for_a_model_that_is_gone_is_abandoned() -> None:
    """Its bytes come back."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    request = shell.ask("b")
    configure(shell, [model("a")], [engine("a", 60)])
    assert shell.outcomes[request] == "UnknownModel"
    assert shell.unloading["b"].abandon


def test_a_claim_does_not_outlive_those_it_was_made_for() -> None:
    """The model moved to another engine; the engine that drained serves on."""
    engines = [engine("a", 80, slots=2), engine("c", 80), engine("d", 15)]
    shell = shell_of(100, engines, [model("a"), model("m", "c"), model("x", "c")], max_wait_s=1.0)
    shell.serve("a")
    shell.ask("m")
    shell.advance(1.0)
    blocked = shell.ask("a")
    configure(shell, [model("a"), model("m", "d"), model("x", "c")], engines)
    assert not shell.core.state.claims
    assert shell.outcomes[blocked] == "granted"
    assert shell.loading.keys() == {"d"}


def test_a_configuration_that_does_not_hold_changes_nothing() -> None:
    """Pins that do not fit are refused before anything is touched."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    shell.use("a")
    before = (repr(list(shell.core.state.residents)), shell.core.ledgers())
    with pytest.raises(ConfigError):
        configure(
            shell,
            [model("a", pinned=True), model("b", pinned=True)],
            [engine("a", 60), engine("b", 60)],
        )
    assert (repr(list(shell.core.state.residents)), shell.core.ledgers()) == before


def test_a_callers_pin_counts_when_the_configuration_is_read_anew() -> None:
    """It survives, and a limit that it does not fit in is refused."""
    shell = shell_of(100, [engine("a", 60)])
    shell.ask("a", want="pin")
    shell.settle()
    configure(shell, [model("a")], [engine("a", 60)])
    assert shell.core.state.residents["a"].pins == {"a"}
    with pytest.raises(ConfigError, match="do not fit"):
        configure(shell, [model("a")], [engine("a", 60)], limit=50)


def test_other_devices_are_a_config_error() -> None:
    """A keeper's devices do not change while it runs, and it says so."""
    shell = shell_of(100, [engine("a", 60)])
    with pytest.raises(ConfigError, match="devices changed"):
        shell.send(ev.Reconfigured((model("a"),), (engine("a", 60),), {"gpu": 100, "gpu1": 100}))


def test_a_new_pin_frees_an_engine_that_was_draining() -> None:
    """A pinned engine does not drain and is not evicted when its leases end."""
    engines = [engine("a", 60), engine("c", 60)]
    shell = shell_of(100, engines, max_wait_s=1.0)
    held = shell.serve("a")
    lone = shell.ask("c")
    shell.advance(1.0)
    assert shell.drains_for("a") == "c"
    configure(shell, [model("a", pinned=True), model("c")], engines)
    assert shell.outcomes[lone] == "NeverFits"
    shell.end(held)
    assert shell.state("a") is State.IDLE


def test_a_new_pin_cancels_an_earlier_unload_hint() -> None:
    """The later word counts."""
    engines = [engine("a", 60)]
    shell = shell_of(100, engines)
    held = shell.serve("a")
    shell.send(ev.HintGiven("unload", "a"))
    configure(shell, [model("a", pinned=True)], engines)
    shell.end(held)
    assert shell.state("a") is State.IDLE


def test_a_new_keep_alive_counts_from_the_last_use() -> None:
    """Shortened below the time already idle, the engine leaves at once."""
    engines = [engine("a", 60)]
    shell = shell_of(100, engines)
    shell.use("a")
    shell.advance(10.0)
    configure(shell, [model("a", keep_alive_s=15.0)], engines)
    assert shell.state("a") is State.IDLE
    shell.advance(5.0)
    assert shell.state("a") is State.EVICTING


def test_a_lower_limit_sheds_idle_engines_and_a_higher_one_admits() -> None:
    """The limit is the configuration's to change."""
    engines = [engine("a", 40), engine("b", 40)]
    models = [model("a"), model("b")]
    shell = shell_of(100, engines)
    shell.use("a")
    shell.advance(1.0)
    held = shell.serve("b")
    configure(shell, models, engines, limit=70)
    assert shell.unloading.keys() == {"a"}
    shell.settle()
    waits = shell.ask("a")
    configure(shell, models, engines, limit=100)
    shell.settle()
    assert {waits, held} == set(shell.leases)


def test_what_other_programs_hold_is_remembered_through_a_new_limit() -> None:
    """A measured ceiling is not moved by the limit."""
    engines = [engine("a", 30)]
    shell = shell_of(100, engines)
    shell.send(ev.DeviceMeasured("gpu", 40))
    configure(shell, [model("a")], engines, limit=50)
    assert shell.core.ledgers()[0].ceiling_bytes == 40
    configure(shell, [model("a")], engines, limit=30)
    assert shell.core.ledgers()[0].ceiling_bytes == 30


def test_an_engine_that_comes_back_before_it_left_is_kept() -> None:
    """Configured away and back while leased: nothing happened."""
    engines = [engine("a", 30)]
    shell = shell_of(100, [*engines, engine("b", 30)])
    held = shell.serve("a")
    configure(shell, [model("b")], [engine("b", 30)])
    configure(shell, [model("a")], engines)
    shell.end(held)
    assert shell.state("a") is State.IDLE


def settle_on(shell: Shell, settings: CoreSettings) -> list[act.Action]:
    """Read the same models with other settings."""
    state = shell.core.state
    specs = tuple(engine.spec for engine in state.residents)
    return shell.send(ev.Reconfigured(tuple(state.models.values()), specs, {"gpu": 100}, settings))


def test_looking_ahead_begins_and_ends_with_its_setting() -> None:
    """A staging that is not wanted any more is stopped; what is declared is loaded at once."""
    shell = shell_of(100, [engine("a", 40), engine("b", 40)], prefetch="off")
    shell.declare("a", "b")
    assert not shell.loading
    settle_on(shell, CoreSettings(prefetch="stage"))
    assert shell.staging == {"a"}
    actions = settle_on(shell, CoreSettings(prefetch="off"))
    assert [a.engine_id for a in actions if isinstance(a, act.StopStaging)] == ["a"]
    settle_on(shell, CoreSettings(prefetch="load"))
    assert shell.loading.keys() == {"a"}


def test_a_shorter_max_wait_counts_for_requests_that_wait_already() -> None:
    """The engine in use is drained for them as soon as that time is over."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)], max_wait_s=100.0)
    held = shell.serve("a")
    waits = shell.ask("b")
    settle_on(shell, CoreSettings(max_wait_s=5.0))
    shell.advance(5.0)
    assert shell.core.state.residents["a"].draining_for == "b"
    shell.end(held)
    shell.settle()
    assert waits in shell.leases


def test_a_model_has_a_queue_bound_of_its_own() -> None:
    """It goes before the bound for every model."""
    entries = [model("a", max_queue=1), model("b")]
    shell = shell_of(100, [engine("a", 40), engine("b", 40)], entries, max_queue_per_model=2)
    held = [shell.serve("a"), shell.serve("b")]
    asked = [shell.ask(name) for name in "aabbb"]
    assert [shell.outcomes.get(r) for r in asked] == [None, "QueueFull", None, None, "QueueFull"]
    for lease in held:
        shell.end(lease)


BAD_FILE = {
    "error": "BadModelFile",
    "message": "b.gguf is cut short.",
    "hint": "",
    "facts": {"file": "b.gguf"},
}


def test_requests_that_wait_for_a_model_whose_file_is_bad_get_its_error() -> None:
    """Not that the model is unknown, which it is not."""
    shell = shell_of(100, [engine("a", 60), engine("b", 60)])
    shell.serve("a")
    waits = shell.ask("b")
    errors = {"b": BAD_FILE}
    models, specs = (model("a"),), (engine("a", 60),)
    shell.send(ev.Reconfigured(models, specs, {"gpu": 100}, errors=errors))
    assert shell.error(waits) == BAD_FILE


def test_a_request_for_a_model_whose_file_is_bad_gets_its_error_until_it_is_good_again() -> None:
    """Also declared uses, a hint, and a lease that was yielded."""
    engines = [engine("a", 60), engine("b", 60)]
    shell = shell_of(100, engines)
    lease = shell.serve("b", preemptible=True)
    shell.send(
        ev.Reconfigured((model("a"),), (engine("a", 60),), {"gpu": 100}, errors={"b": BAD_FILE})
    )
    assert shell.error(shell.ask("b")) == BAD_FILE
    with pytest.raises(BadModelFile):
        shell.declare("a", "b")
    with pytest.raises(BadModelFile):
        shell.send(ev.HintGiven("release", "b"))
    shell.yield_(lease)
    assert shell.error(lease) == BAD_FILE
    configure(shell, [model("a"), model("b")], engines)
    shell.use("b")
