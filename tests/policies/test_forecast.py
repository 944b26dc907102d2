"""The forecast: near the optimum where the past tells, near LRU elsewhere, exact on declared uses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from budget.errors import ConfigError
from budget.eviction.forecast import Forecaster
from budget.eviction.forecast.transitions import MOST_SUCCESSORS, Transitions
from budget.eviction.policies import DEFAULT_POLICY, make_policy
from budget.simulation import Arrival, Replay, SimulatedModel, Trial, parse_models
from budget.simulation.compare import make_core, offline_optimum, run
from tests.simulation.worlds import letters, random_letters, trial, world
from tools import workloads

LENGTH = 800


def load_seconds(one: Trial, policy: str) -> float:
    """Load seconds of a trial under a policy."""
    return run(one, policy).summary.load_seconds


def within_the_guard(one: Trial) -> bool:
    """At most 1.02 x LRU's load seconds and ten of the largest loads."""
    largest = max(m.load_seconds for m in one.models.values())
    return load_seconds(one, "forecast") <= 1.02 * load_seconds(one, "lru") + 10.0 * largest


def made(kind: str, seed: int, share: float, declare: int = 0) -> Trial:
    """A generated workload under a budget for a share of its models' bytes."""
    models = {m.name: m for m in parse_models(workloads.models(kind), kind)}
    arrivals = [Arrival(*row) for row in workloads.rows(kind, seed, LENGTH)]
    total, most = sum(m.bytes for m in models.values()), max(m.bytes for m in models.values())
    return Trial(arrivals, models, max(most, int(total * share)), declare=declare)


def test_forecast_is_the_default() -> None:
    """Of the configuration and of the simulator."""
    assert DEFAULT_POLICY == "forecast"
    assert make_policy("forecast").name == "forecast"


@pytest.mark.parametrize("kind", sorted(workloads.KINDS))
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_generated_pipelines_never_cost_much_more_than_lru(kind: str, share: float) -> None:
    """The promise that a default must keep."""
    assert within_the_guard(made(kind, 7, share))


@pytest.mark.parametrize("kind", sorted(workloads.KINDS))
def test_declared_uses_bring_the_optimum(kind: str) -> None:
    """With the next 100 uses known at most 5% is lost."""
    one = made(kind, 3, 0.6, declare=100)
    least, exact = offline_optimum(one)
    assert exact
    assert load_seconds(one, "forecast") <= 1.05 * least


def test_a_cycle_that_lru_never_hits_is_learned() -> None:
    """Four in turns, round and round with room for three of four: LRU loads every time."""
    sizes = dict.fromkeys("abcd", 1)
    one = Trial(letters("abcd" * 100), world(sizes), 3)
    assert load_seconds(one, "lru") == pytest.approx(800.0)
    assert load_seconds(one, "forecast") <= 0.6 * load_seconds(one, "lru")


@pytest.mark.parametrize("seed", range(4))
def test_a_past_that_misleads_costs_no_more_than_the_guard_allows(seed: int) -> None:
    """Popularity turns over abruptly and often: frequency is always wrong about the present."""
    rng = np.random.default_rng(seed)
    names = [chr(ord("a") + n) for n in range(12)]
    text = ""
    for _ in range(30):
        few = rng.choice(names, 3, replace=False)
        text += "".join(rng.choice(few, 40))
    sizes = {name: int(rng.integers(1, 9)) for name in names}
    models = world(sizes)
    for budget in (9, 18, 27):
        assert within_the_guard(Trial(letters(text), models, budget))


def test_several_devices_keep_the_promise_too() -> None:
    """LRU's own books follow every device."""
    assert within_the_guard(trial(random_letters(2, 600), 5, devices=2))


def test_many_models_keep_the_promise_too() -> None:
    """More models than the exact program takes; declared uses are then ranked by distance."""
    rng = np.random.default_rng(4)
    names = [f"m{n}" for n in range(40)]
    models = {n: SimulatedModel(n, int(rng.integers(1, 20)), 0.5, 2.0) for n in names}
    chosen = [names[int(n)] for n in np.minimum(rng.zipf(1.4, 800), 40) - 1]
    arrivals = [Arrival(10.0 * k, name) for k, name in enumerate(chosen)]
    one = Trial(arrivals, models, 80)
    assert within_the_guard(one)
    known = Trial(arrivals, models, 80, declare=100)
    assert load_seconds(known, "forecast") < load_seconds(one, "forecast")


def test_what_was_learned_survives_a_restart() -> None:
    """Through JSON, and the answers are the same."""
    before = Forecaster()
    for n, letter in enumerate("abcabcabd" * 30):
        before.used(letter, float(n))
        before.expectations("abcd", float(n))
    state = json.loads(json.dumps(before.export_state()))
    after = Forecaster()
    after.import_state(state)
    assert after.export_state() == before.export_state()
    for forecaster in (before, after):
        for n, letter in enumerate("abc"):
            forecaster.used(letter, 1000.0 + n)
    assert after.weights.keys() == before.weights.keys()
    often, seldom = after.expectations("ad", 1003.0)
    assert often > seldom


@pytest.mark.parametrize("damage", [{"version": 99}, {"rates": {}}, {"experts": {"losses": []}}])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: dict[str, object]) -> None:
    """A keeper that finds rubbish learns anew and says so."""
    forecaster = Forecaster()
    forecaster.used("a", 1.0)
    before = forecaster.export_state()
    with pytest.raises(ConfigError, match="cannot be read"):
        forecaster.import_state({**before, **damage})
    assert forecaster.export_state() == before


def test_at_most_32_successors_are_kept() -> None:
    """The state stays sparse whatever comes."""
    transitions = Transitions()
    transitions.discounted(0.9)
    rng = np.random.default_rng(0)
    transitions.learn([f"m{int(rng.integers(200))}" for _ in range(3000)])
    rows = transitions.export_state()["rows"]
    assert max(len(row["successors"]) for row in rows.values()) == MOST_SUCCESSORS


def test_the_record_says_which_predictor_the_eviction_followed() -> None:
    """The experts with their shares, recency and why, or the declared uses."""
    cycle = letters("abcde" * 120)
    told = {}
    for declare in (0, 10):
        one = Trial(cycle, world(dict.fromkeys("abcde", 1)), 3, declare=declare)
        core = make_core(one, "forecast")
        Replay(core, one.models, declare=declare).sequential(one.arrivals)
        told[declare] = [record.followed for record in core.state.records if record.victims]
    assert set(told[10][:-1]) == {"declared uses"}
    assert told[0][-1].startswith(("transitions", "histories"))
    assert all(re.fullmatch(r"\w+ \d+%(, \w+ \d+%)*", followed) for followed in told[0])


def test_while_lru_is_followed_the_record_says_why() -> None:
    """Recency costs least where uses are uniform, and the guard holds what misleads."""
    policy = make_policy("forecast")
    assert policy.followed.count("%") == 3
    policy._guard.following = True  # type: ignore[attr-defined]
    assert policy.followed.startswith("lru")


def test_the_record_names_candidates_losses_and_the_set() -> None:
    """The forecast names what it follows; losses are expected load seconds and never negative."""
    one = trial("abcdeabcde", 8)
    core = make_core(one, "forecast")
    Replay(core, one.models).sequential(one.arrivals)
    records = [record for record in core.state.records if record.victims]
    assert records
    for record in records:
        assert record.policy == "forecast"
        assert record.followed
        named = {c.engine_id: c.loss for c in record.candidates}
        assert set(record.victims) <= named.keys()
        assert all(loss >= 0.0 for loss in named.values())
