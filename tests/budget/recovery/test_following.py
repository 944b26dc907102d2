"""DeclaredUses, policy, look-ahead and every table by engine follow each reading of the configuration."""

from __future__ import annotations

import pytest

from budget import events as ev
from budget.books.engines import EngineSpec, ModelSpec, PlacementOption
from budget.books.states import State
from budget.eviction.policies import POLICY_NAMES, make_policy
from budget.eviction.policies.forecast import Forecast
from tests.budget.machine import Shell, engine, model, shell_of

NAMES = ("a", "b", "c")


def configuration(**files: str) -> tuple[tuple[ModelSpec, ...], tuple[EngineSpec, ...]]:
    """Models a, b and c, of which some are run by another engine than the one of their name."""
    models = tuple(ModelSpec(name, files.get(name, name)) for name in NAMES)
    return models, tuple(engine(m.engine_id, 60) for m in models)


def configure(shell: Shell, **files: str) -> None:
    """Read it anew."""
    models, engines = configuration(**files)
    shell.send(ev.Reconfigured(models, engines, {"gpu": 100}))


@pytest.mark.parametrize("policy", POLICY_NAMES)
@pytest.mark.parametrize("prefetch", ["off", "load"])
def test_a_model_that_changes_under_declared_uses_wedges_nothing(
    policy: str, prefetch: str
) -> None:
    """Its file is fetched again while it is resident, absent or loading; then others are evicted."""
    models, engines = configuration()
    shell = shell_of(100, engines, models, policy=make_policy(policy), prefetch=prefetch)
    for turn, name in enumerate("abcabcabc"):
        shell.declare("a", "b", "c", "a", "b", "c", client="planner")
        shell.use(name, "planner")
        shell.ask("b", "other")
        configure(shell, **{name: f"{name}{turn}", "b": f"b{turn}"})
        shell.advance(1.0)
        shell.settle()
        for lease in list(shell.leases):
            shell.end(lease)
    for name in NAMES:
        shell.use(name)
    assert set(shell.outcomes.values()) == {"granted"}


def test_declared_uses_go_on_with_the_engine_that_runs_their_model_now() -> None:
    """What was declared is of models; a step whose model is gone is left out."""
    models, engines = configuration()
    shell = shell_of(100, engines, models)
    uses = shell.core.state.declared_uses
    shell.declare("a", "b", "c", "b", client="planner")
    configure(shell, b="b2")
    assert uses.order(9) == ["a", "b2", "c", "b2"]
    shell.use("a", "planner")
    shell.use("b", "planner")
    assert uses.order(9) == ["c", "b2"]
    without = tuple(m for m in models if m.name == "a")
    shell.send(ev.Reconfigured(without, engines[:1], {"gpu": 100}))
    assert not uses


def test_what_is_staged_or_loaded_ahead_for_an_engine_that_is_gone_is_given_up() -> None:
    """The file that is read is another one now."""
    models, engines = configuration()
    shell = shell_of(100, engines, models, prefetch="load")
    lease = shell.serve("a")
    shell.declare("b", client="planner")
    assert shell.staging == {"b"}
    configure(shell, b="b2")
    shell.finish_staging()
    assert shell.staging == {"b2"}
    shell.end(lease)
    shell.settle()
    assert shell.core.state.prefetched.keys() == {"b2"}
    configure(shell, b="b3")
    shell.settle()
    assert shell.core.state.prefetched.keys() == {"b3"}


def test_what_the_forecast_learned_holds_for_the_engine_that_runs_the_model_now() -> None:
    """A file that is fetched again is used as often as before."""
    policy = Forecast()
    models, engines = configuration()
    shell = shell_of(100, engines, models, policy=policy)
    for turn in range(60):
        shell.use("aab"[turn % 3])
        shell.advance(1.0)
    names = ["a", "b"]
    before = policy.forecaster.expectations(names, shell.now)
    configure(shell, a="a2")
    after = policy.forecaster.expectations(["a2", "b"], shell.now)
    assert after == pytest.approx(before, rel=0.2)
    assert policy.forecaster.expectations(["a"], shell.now)[0] < after[0] / 2
    assert "a" not in str(policy.export_state()).replace("a2", "").split("'")


def test_engines_that_are_gone_leave_every_table() -> None:
    """A keeper runs for months, and files are fetched again every day."""
    models, engines = configuration()
    shell = shell_of(100, engines, models, policy=make_policy("forecast"), prefetch="load")
    for turn in range(40):
        shell.declare("a", "b", "c", client="planner")
        for name in NAMES:
            shell.use(name, "planner")
            shell.advance(1.0)
        configure(shell, **{name: f"{name}{turn}" for name in NAMES})
        shell.settle()
        while shell.staging:
            shell.finish_staging()
    state, now = shell.core.state, {f"{name}39" for name in NAMES}
    assert {e.engine_id for e in state.residents} == now
    assert {
        *state.restless,
        *state.prefetched,
        *state.claims.spared,
        *state.fitting._feasible,
    } <= now
    policy = state.policy.trusted
    assert isinstance(policy, Forecast)
    learned = policy.export_state()
    tables = (
        learned["rates"]["uses"],
        learned["histories"]["rows"],
        learned["transitions"]["rows"],
    )
    for table in tables:
        assert set(table) <= now
    assert set(policy.forecaster.lru_held) <= now


def placed(*sizes: int) -> EngineSpec:
    """An engine with a placement of each size."""
    return EngineSpec(
        "a", tuple(PlacementOption((("gpu", size),), 1.0, tier=t) for t, size in enumerate(sizes))
    )


def test_other_placements_count_from_the_next_load_where_the_present_one_has_none_of_them() -> None:
    """The bytes of an engine that runs are what they are."""
    shell = shell_of(100, [placed(60, 50)], [model("a")])
    shell.use("a")
    shell.send(ev.Reconfigured((model("a"),), (placed(40),), {"gpu": 100}))
    assert shell.state("a") is State.IDLE
    assert shell.core.ledgers()[0].reserved_bytes == 60
    shell.send(ev.HintGiven("unload", "a"))
    shell.settle()
    shell.use("a")
    assert shell.core.ledgers()[0].reserved_bytes == 40


def test_other_placements_of_an_absent_engine_count_at_once() -> None:
    """Also how many they are, and what was promised to it before."""
    shell = shell_of(100, [placed(90), engine("b", 60)], [model("a"), model("b")], max_wait_s=1.0)
    held = shell.serve("b")
    waits = shell.ask("a")
    shell.advance(1.0)
    assert shell.drains_for("b") == "a"
    models, specs = (model("a"), model("b")), (placed(40, 30), engine("b", 60))
    shell.send(ev.Reconfigured(models, specs, {"gpu": 100}))
    assert shell.drains_for("b") is None
    shell.settle()
    assert {held, waits} == set(shell.leases)


def test_a_higher_limit_places_a_pin_where_it_fits_better() -> None:
    """Limits count before pins are placed."""
    tiers = EngineSpec(
        "a", (PlacementOption((("gpu", 80),), 1.0), PlacementOption((("gpu", 30),), 1.0, tier=1))
    )
    models = (model("a", pinned=True), model("b"))
    shell = shell_of(50, [tiers, engine("b", 20)], models)
    shell.fail_load("a")
    shell.send(ev.Reconfigured(models, (tiers, engine("b", 20)), {"gpu": 100}))
    shell.advance(1.0)
    assert shell.loading["a"].option_index == 0
