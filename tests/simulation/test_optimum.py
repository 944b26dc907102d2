"""The yardsticks: the exact program against brute force, and the bound below it."""

from __future__ import annotations

from itertools import chain, combinations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from budget.eviction.known_order import optimum
from budget.simulation.compare import SIMULATED_POLICIES, compare, offline_optimum
from budget.simulation.lower_bound import lower_bound
from tests.simulation.worlds import random_letters, trial

CASES = settings(max_examples=120, deadline=None, derandomize=True, database=None)


def brute_force(uses: list[int], sizes: list[int], costs: list[float], budget: int) -> float:
    """Every schedule: after each use any feasible subset of what was there may stay."""
    states = {frozenset[int](): 0.0}
    for use in uses:
        after: dict[frozenset[int], float] = {}
        for resident, paid in states.items():
            cost = paid + (0.0 if use in resident else costs[use])
            others = resident - {use}
            for kept in chain.from_iterable(
                combinations(others, n) for n in range(len(others) + 1)
            ):
                there = frozenset({*kept, use})
                if sum(sizes[m] for m in there) <= budget:
                    after[there] = min(cost, after.get(there, float("inf")))
        states = after
    return min(states.values())


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], list[int], list[float], int]:
    """Up to four models and ten uses; every model fits alone."""
    count = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    costs = [float(c) for c in draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))]
    uses = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=10))
    return uses, sizes, costs, draw(st.integers(max(sizes), sum(sizes)))


@CASES
@given(problems())
def test_the_exact_program_equals_brute_force(
    problem: tuple[list[int], list[int], list[float], int],
) -> None:
    """The least cost of all schedules."""
    assert optimum(*problem) == pytest.approx(brute_force(*problem))


@CASES
@given(problems())
def test_the_bound_is_never_above_the_optimum(
    problem: tuple[list[int], list[int], list[float], int],
) -> None:
    """And never below what every model's first load costs."""
    uses, _, costs, _ = problem
    bound = lower_bound(*problem)
    assert bound <= optimum(*problem) + 1e-9
    assert bound >= sum(costs[m] for m in set(uses)) - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_beats_the_optimum(seed: int) -> None:
    """In sequential replay, with and without declared uses."""
    for declare in (0, 20):
        found = compare(
            trial(random_letters(seed, 300), 8, declare=declare), list(SIMULATED_POLICIES)
        )
        assert found.exact
        assert all(found.ratio(name) >= 1.0 - 1e-9 for name in SIMULATED_POLICIES)


def test_several_devices_get_a_bound_that_says_so() -> None:
    """The program knows one device only."""
    least, exact = offline_optimum(trial(random_letters(1, 200), 8, devices=2))
    assert not exact
    assert least > 0.0
