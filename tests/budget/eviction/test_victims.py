"""The set that leaves: it frees enough, has no redundant member, and loses the least."""

from __future__ import annotations

from itertools import combinations

import hypothesis.strategies as st
from hypothesis import given, settings

from budget.actions import EvictionCandidate
from budget.eviction.smallest_sets import EXACT_LIMIT
from budget.eviction.victims import choose_victims

CASES = settings(max_examples=300, deadline=None, derandomize=True, database=None)


@st.composite
def candidates(draw: st.DrawFn, most: int) -> list[EvictionCandidate]:
    """Engines on one or two devices with small losses, some equal, some zero."""
    count = draw(st.integers(0, most))
    found = []
    for index in range(count):
        devices = draw(st.sampled_from([("g",), ("h",), ("g", "h")]))
        bookings = tuple((d, draw(st.integers(0, 30))) for d in devices)
        found.append(EvictionCandidate(f"e{index}", float(draw(st.integers(0, 9))), bookings))
    return found


SHORTAGES = st.one_of(
    st.fixed_dictionaries({"g": st.integers(1, 60)}),
    st.fixed_dictionaries({"g": st.integers(1, 60), "h": st.integers(1, 60)}),
)


def freed(chosen: list[EvictionCandidate] | tuple[EvictionCandidate, ...], device: str) -> int:
    """Bytes that these free on a device."""
    return sum(amount for c in chosen for d, amount in c.bookings if d == device)


def frees_enough(
    chosen: list[EvictionCandidate] | tuple[EvictionCandidate, ...], shortage: dict[str, int]
) -> bool:
    """Whether enough comes free everywhere."""
    return all(freed(chosen, device) >= amount for device, amount in shortage.items())


@CASES
@given(candidates(20), SHORTAGES, st.booleans())
def test_the_victims_free_enough_and_none_is_redundant(
    engines: list[EvictionCandidate], shortage: dict[str, int], ordered: bool
) -> None:
    """None exactly when all together are too few; else removing any one victim is too few."""
    victims = choose_victims(engines, shortage, ordered=ordered)
    if victims is None:
        assert not frees_enough(engines, shortage)
        return
    assert frees_enough(victims, shortage)
    for victim in victims:
        assert not frees_enough([v for v in victims if v is not victim], shortage)
    assert victims == sorted(victims, key=lambda c: (c.loss, c.engine_id))
    assert len({v.engine_id for v in victims}) == len(victims)


@CASES
@given(candidates(8), SHORTAGES)
def test_the_least_total_loss_equals_brute_force(
    engines: list[EvictionCandidate], shortage: dict[str, int]
) -> None:
    """Up to eight engines, every subset is tried here."""
    victims = choose_victims(engines, shortage, ordered=False)
    losses = [
        sum(c.loss for c in subset)
        for size in range(len(engines) + 1)
        for subset in combinations(engines, size)
        if frees_enough(subset, shortage)
    ]
    assert (victims is None) == (not losses)
    if victims is not None:
        assert sum(v.loss for v in victims) == min(losses)


@CASES
@given(candidates(10), SHORTAGES)
def test_in_order_no_engine_leaves_while_a_lesser_loss_would_have_done(
    engines: list[EvictionCandidate], shortage: dict[str, int]
) -> None:
    """The costliest victim is needed: all that cost less together free too little."""
    victims = choose_victims(engines, shortage, ordered=True)
    if victims:
        worst = max(v.loss for v in victims)
        assert not frees_enough([c for c in engines if c.loss < worst], shortage)


def test_one_large_victim_beats_two_small_ones_that_cost_more() -> None:
    """The set counts, not the first in order."""
    engines = [
        EvictionCandidate("a", 1.0, (("g", 30),)),
        EvictionCandidate("b", 1.5, (("g", 30),)),
        EvictionCandidate("c", 2.0, (("g", 60),)),
    ]
    least = choose_victims(engines, {"g": 60}, ordered=False)
    assert [v.engine_id for v in least or []] == ["c"]
    in_order = choose_victims(engines, {"g": 60}, ordered=True)
    assert [v.engine_id for v in in_order or []] == ["a", "b"]


def test_who_turns_out_not_to_be_needed_stays() -> None:
    """The oldest frees too little and the next alone frees enough: only that one leaves."""
    engines = [
        EvictionCandidate("old", 0.1, (("g", 5),)),
        EvictionCandidate("next", 0.2, (("g", 50),)),
    ]
    victims = choose_victims(engines, {"g": 50}, ordered=True)
    assert [v.engine_id for v in victims or []] == ["next"]


def test_engines_on_other_devices_are_never_touched() -> None:
    """Bytes elsewhere do not help."""
    engines = [EvictionCandidate("h", 0.0, (("h", 99),)), EvictionCandidate("g", 9.0, (("g", 10),))]
    victims = choose_victims(engines, {"g": 10}, ordered=False)
    assert [v.engine_id for v in victims or []] == ["g"]


def test_many_candidates_are_decided_without_trying_every_set() -> None:
    """Above the exact limit the answer still frees enough and is no worse than recency's."""
    engines = [
        EvictionCandidate(f"e{i:03}", 1.0 + (i * 7 % 13), (("g", 1 + i * 5 % 17),))
        for i in range(200)
    ]
    assert len(engines) > EXACT_LIMIT
    least = choose_victims(engines, {"g": 300}, ordered=False) or []
    recency = choose_victims(engines, {"g": 300}, ordered=True) or []
    assert frees_enough(least, {"g": 300})
    assert sum(v.loss for v in least) <= sum(v.loss for v in recency)
