"""The contest of experts: the one that would have loaded least counts most; few devices are watched."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from budget.books.engines import EngineSpec, PlacementOption
from budget.books.residents import Residents
from budget.eviction.forecast.experts import MOST_DEVICES, NAMES, Contest
from budget.simulation import Arrival, Replay, Trial, parse_models
from budget.simulation.compare import make_core, run
from tests.simulation.worlds import letters, world
from tools import workloads

LENGTH = 1500


def books(limit: int, devices: int = 1) -> Residents:
    """Three engines of 4, 3 and 3 bytes that may go anywhere, none resident."""
    names = [f"device:{n}" for n in range(devices)]
    specs = [
        EngineSpec(name, tuple(PlacementOption(((device, size),), 5.0) for device in names))
        for name, size in (("a", 4), ("b", 3), ("c", 3))
    ]
    return Residents(dict.fromkeys(names, limit), specs)


def sensible(engine_ids: Sequence[str]) -> list[float]:
    """Losses of an expert that would never let `a` go."""
    return [1.0 if engine_id == "a" else 0.5 for engine_id in engine_ids]


def misled(engine_ids: Sequence[str]) -> list[float]:
    """Losses of one that always would."""
    return [0.1 if engine_id == "a" else 1.0 for engine_id in engine_ids]


def contest_on(residents: Residents) -> Contest:
    """Of four experts the last one is misled."""
    contest = Contest((sensible, sensible, sensible, misled))
    contest.attach(residents)
    return contest


def test_an_expert_that_loads_more_counts_less() -> None:
    """An expert that would evict what is used all the time loses its weight."""
    contest = contest_on(books(7))
    assert contest.weights == pytest.approx([0.25] * len(NAMES))
    for engine_id in "abacabacabac":
        contest.used(engine_id)
    assert contest.weights[3] < 0.1
    assert sum(contest.weights) == pytest.approx(1.0)
    assert contest.shares[2] < contest.shares[0]


def test_costs_fade() -> None:
    """An expert that was wrong long ago is not judged for it any more."""
    contest = contest_on(books(7))
    for engine_id in "abacabacabac":
        contest.used(engine_id)
    before = contest.weights[3]
    contest.fade(8.0)
    assert before < contest.weights[3] < 0.25


def test_few_devices_are_watched() -> None:
    """Loads elsewhere change no expert's books: the work does not grow with the machine."""
    residents = books(7, devices=MOST_DEVICES + 1)
    contest = contest_on(residents)
    engine = residents["a"]
    engine.option_index = MOST_DEVICES
    engine.bookings = engine.option.bookings
    contest.booked(engine)
    assert contest.export_state()["costs"] == [0.0] * len(NAMES)
    engine.option_index = 0
    engine.bookings = engine.option.bookings
    contest.booked(engine)
    assert contest.export_state()["costs"] == [5.0] * len(NAMES)


def test_lru_pays_for_a_load_where_the_others_look_as_they_do() -> None:
    """Also where it has the engine already, on a device that only the guard's comparison counts."""
    residents = books(7, devices=MOST_DEVICES + 1)
    contest = contest_on(residents)
    engine = residents["a"]
    for option in (MOST_DEVICES, 0):
        engine.option_index = option
        engine.bookings = engine.option.bookings
        contest.booked(engine)
    assert contest.export_state()["costs"] == [5.0] * len(NAMES)
    assert contest.lru_s == 5.0, "under LRU it would have been resident the second time"
    assert dict(contest.lru_held) == {"a": engine.bookings}


@pytest.mark.parametrize("costs", [[1.0], [1.0, 2.0, 3.0, -1.0]])
def test_a_damaged_record_of_the_contest_is_refused(costs: list[float]) -> None:
    """Too few costs, or such as cannot be."""
    with pytest.raises(ValueError, match=r"costs|between"):
        contest_on(books(7)).import_state({"costs": costs, "largest_s": 1.0})


def test_transitions_win_where_order_tells_all() -> None:
    """A cycle larger than memory: neither recency nor frequency can tell which engine comes next."""
    one = Trial(letters("abcde" * 120), world(dict.fromkeys("abcde", 1)), 3)
    core = make_core(one, "forecast")
    Replay(core, one.models).sequential(one.arrivals)
    weights = core.state.policy.trusted.forecaster.weights  # type: ignore[attr-defined]
    assert max(weights, key=weights.__getitem__) in ("transitions", "histories")
    assert weights["lru"] < 0.05


def test_the_order_of_a_pipeline_is_worth_a_fifth_of_the_loads() -> None:
    """Documents by kind: experts judged by likelihood, not by loads, load as much as LRU here."""
    models = {m.name: m for m in parse_models(workloads.models("documents"), "documents")}
    arrivals = [Arrival(*row) for row in workloads.rows("documents", 5, LENGTH)]
    budget = int(sum(m.bytes for m in models.values()) * 0.6)
    one = Trial(arrivals, models, budget)
    forecast, lru = (run(one, name).summary.load_seconds for name in ("forecast", "lru"))
    assert forecast <= 0.8 * lru
