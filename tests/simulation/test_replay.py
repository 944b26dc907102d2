"""The replay: clocks, waits and counts as computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from budget.actions import Action
from budget.core import BudgetCore
from budget.errors import ConfigError, InvalidRequest
from budget.events import Event
from budget.simulation import Replay, compare, parse_models, parse_rows, parse_runs
from budget.simulation.compare import Mode, make_core, run
from budget.simulation.requests import Arrival
from tests.simulation.worlds import letters, random_letters, trial


def test_loads_waits_and_evictions_of_one_at_a_time() -> None:
    """Model a (4 bytes, 5 s) and b (3 bytes, 4 s) take turns where only one fits."""
    figures = run(trial("aba", 4), "lru").summary
    assert (figures.loads, figures.evictions, figures.moved_bytes) == (3, 2, 11)
    assert figures.load_seconds == pytest.approx(14.0)
    assert figures.wait_max_s == pytest.approx(5.0)
    assert figures.wait_p50_s == pytest.approx(5.0)
    assert figures.hidden_load_seconds == 0.0


def test_the_next_request_waits_for_the_one_before_it() -> None:
    """Sequential means that a long answer delays the next request."""
    arrivals = [Arrival(0.0, "a", 10, 20), Arrival(1.0, "a", 0, 0)]
    figures = run(trial(arrivals, 4), "lru").summary
    assert figures.wait_max_s == pytest.approx(5.0 + 30.0 - 1.0)


def test_timed_requests_do_not_wait_for_those_of_other_models() -> None:
    """With room for both, each waits for its own load only."""
    arrivals = [Arrival(0.0, "a", 10, 20), Arrival(1.0, "b", 0, 0)]
    figures = run(trial(arrivals, 9, mode="timed"), "lru").summary
    assert figures.wait_max_s == pytest.approx(5.0)


def test_declared_uses_are_loaded_while_others_run() -> None:
    """Model b is loaded during a's answer, so its whole load is hidden and no request waits for it."""
    arrivals = [Arrival(0.0, "a", 10, 20), Arrival(36.0, "b", 0, 0)]
    figures = run(trial(arrivals, 9, mode="timed", declare=2), "forecast").summary
    assert figures.hidden_load_seconds == pytest.approx(4.0)
    assert figures.wait_p50_s == pytest.approx(2.5)


@pytest.mark.parametrize("mode", ["sequential", "timed"])
@pytest.mark.parametrize("first_s", [7.0, 0.0, -3.0])
def test_pinned_models_are_there_for_the_first_request_and_time_never_goes_back(
    mode: Mode, first_s: float
) -> None:
    """The keeper starts before the trace does, not beside it, whenever that begins."""
    arrivals = [Arrival(first_s, "a", 0, 0), Arrival(first_s + 1.0, "b", 0, 0)]
    usual = trial(arrivals, 9, mode=mode)
    pinned = {name: replace(m, pinned=name == "a") for name, m in usual.models.items()}
    world = replace(usual, models=pinned)
    times: list[float] = []

    class Watched(BudgetCore):
        def handle(self, event: Event, now: float) -> list[Action]:
            times.append(now)
            return super().handle(event, now)

    metrics = getattr(Replay(make_core(world, "lru", Watched), pinned), mode)(world.arrivals)
    assert times == sorted(times)
    assert metrics.waits == pytest.approx([0.0, 4.0])
    assert metrics.load_seconds == pytest.approx(5.0 + 4.0)
    assert metrics.hidden_load_seconds == pytest.approx(5.0)


def test_what_can_never_fit_is_denied_and_left_out_of_the_optimum() -> None:
    """Model e takes 5 bytes of 4."""
    found = compare(trial("aea", 4), ["lru"])
    assert found.results["lru"].summary.denied == 1
    assert found.ratio("lru") == 1.0


def test_the_core_chooses_the_device() -> None:
    """Two devices hold what one would swap."""
    one, two = (run(trial("abababab", 4, devices=n), "lru").summary for n in (1, 2))
    assert (one.loads, two.loads) == (8, 2)


def test_the_same_trial_gives_the_same_figures() -> None:
    """Nothing is random."""
    again = [run(trial(random_letters(5, 200), 8), "forecast").summary for _ in range(2)]
    assert again[0] == again[1]


def test_unknown_models_and_policies_are_named() -> None:
    """Typed errors with what is allowed."""
    with pytest.raises(InvalidRequest, match="not described: z"):
        compare(trial("az", 4), ["lru"])
    with pytest.raises(ConfigError, match="newest") as caught:
        compare(trial("a", 4), ["newest"])
    assert "belady" in caught.value.hint


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"arrival_s": "x", "model": "a", "prompt_tokens": "1", "output_tokens": "1"}, "row 1"),
        ({"arrival_s": "nan", "model": "a", "prompt_tokens": "1", "output_tokens": "1"}, "nan"),
        ({"arrival_s": "0", "model": "a", "prompt_tokens": "-1", "output_tokens": "1"}, "-1"),
        ({"arrival_s": "0", "model": "a", "prompt_tokens": "1"}, "output_tokens is missing"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(row: dict[str, str], complaint: str) -> None:
    """Nothing is skipped silently."""
    with pytest.raises(InvalidRequest, match=complaint):
        parse_rows([row], "t.csv")


def test_ones_own_runs_can_be_replayed() -> None:
    """Arrivals of several runs on one clock, from the first on; remote requests take no bytes."""
    request = {"model": "a", "arrival_s": 2.0, "prompt_tokens": 5, "output_tokens": None}
    lines = [
        {"started_s": 100.0, "requests": [request]},
        {"started_s": 50.0, "requests": [{**request, "model": "b"}, {**request, "remote": True}]},
    ]
    found = parse_runs(lines, "runs.jsonl")
    assert [(a.arrival_s, a.model, a.prompt_tokens, a.output_tokens) for a in found] == [
        (0.0, "b", 5, 0),
        (50.0, "a", 5, 0),
    ]


@pytest.mark.parametrize(
    "change",
    [{"bytes": 0}, {"bytes": 1.5}, {"slots": 0}, {"pinned": 1}, {"colour": "red"}, {"name": ""}],
)
def test_a_bad_model_is_refused(change: dict[str, object]) -> None:
    """Unknown keys and impossible values are errors."""
    good = {"name": "a", "bytes": 1, "load_fixed_s": 0.0, "load_bandwidth_bytes_per_s": 1.0}
    assert parse_models({"models": [good]}, "m").pop().load_seconds == 1.0
    with pytest.raises(ConfigError):
        parse_models({"models": [{**good, **change}]}, "m")


def test_arrivals_out_of_order_are_put_in_order() -> None:
    """A file may be sorted by anything."""
    rows = [
        {"arrival_s": a.arrival_s, "model": a.model, "prompt_tokens": 0, "output_tokens": 0}
        for a in reversed(letters("abc"))
    ]
    assert [a.model for a in parse_rows(rows, "t")] == ["a", "b", "c"]
