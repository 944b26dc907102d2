"""Choosing among endpoints: by weight, past those that fail, within what each may have. Pure."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from shim.calls.routing.endpoint_choice import (
    DEATHS,
    DEATHS_WITHIN_S,
    LONGEST_PAUSE_S,
    EndpointChoice,
    Stability,
    WeightedEndpoint,
)


def choice(*weights: float, concurrency: int | None = None) -> EndpointChoice:
    """Endpoints of these weights."""
    return EndpointChoice(
        [WeightedEndpoint(f"http://{i}", w, concurrency) for i, w in enumerate(weights)]
    )


def test_requests_are_shared_by_weight() -> None:
    """Three to one, over many draws."""
    found = choice(3, 1)
    draw = random.Random(1).random
    picks = (found.pick(0.0, draw()) for _ in range(4000))
    places = Counter(pick.place for pick in picks if pick is not None)
    assert 2.7 < places[0] / places[1] < 3.3


def test_an_endpoint_that_failed_cools_down_longer_each_time_and_is_checked_first() -> None:
    """Up to a minute; one success ends that."""
    found = choice(1, 1)
    now, pauses = 0.0, []
    for _ in range(12):
        found.failed(0, now, 0.5)
        began = now
        while (pick := found.pick(now, 0.0)) is None or pick.place != 0:
            now += 0.25
        assert pick.check
        pauses.append(now - began)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(pauses) == LONGEST_PAUSE_S
    found.succeeded(0)
    recovered = found.pick(now, 0.0)
    assert recovered is not None
    assert (recovered.place, recovered.check) == (0, False)


def test_failures_of_requests_that_had_begun_before_count_once() -> None:
    """A hundred requests that break together are one failure; chance moves the pause by a quarter."""
    found = choice(1, 1)
    for _ in range(100):
        found.failed(0, 5.0, 1.0)
    for now, place in ((6.2, 1), (6.3, 0)):
        pick = found.pick(now, 0.0)
        assert pick is not None
        assert pick.place == place


def test_one_request_checks_an_endpoint_while_the_others_go_elsewhere() -> None:
    """Unless there is no other; then the request is not lost."""
    found = choice(1, 1)
    found.failed(0, 0.0, 0.5)
    first = found.pick(2.0, 0.0)
    assert first is not None
    found.begun(first)
    second = found.pick(2.0, 0.0)
    assert second is not None
    assert (first.place, first.check, second.place) == (0, True, 1)
    found.failed(1, 2.0, 0.5)
    third = found.pick(2.0, 0.0)
    assert third is not None
    assert third.check


def test_an_endpoint_gets_no_more_than_it_may_have_at_once() -> None:
    """The rest is refused, until one ends."""
    found = choice(1, concurrency=2)
    for _ in range(2):
        pick = found.pick(0.0, 0.5)
        assert pick is not None
        found.begun(pick)
    assert found.pick(0.0, 0.5) is None
    assert found.full()
    found.ended(0)
    assert found.pick(0.0, 0.5) is not None


STEPS = st.lists(
    st.tuples(st.floats(0, 90), st.floats(0, 0.999), st.sampled_from(["ok", "fail", "wait"])),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.integers(1, 3))
def test_a_request_that_has_room_somewhere_is_never_refused(
    steps: list[tuple[float, float, str]], weights: list[float], most: int
) -> None:
    """Whatever failed before; none is put where it was tried, nor beyond what an endpoint may have."""
    found, now = choice(*weights, concurrency=most), 0.0
    running: Counter[int] = Counter()
    for pause, draw, outcome in steps:
        now += pause
        passed = {place for place in range(len(weights)) if draw * 7 % (place + 2) < 0.5}
        pick = found.pick(now, draw, passed)
        room = [p for p in range(len(weights)) if p not in passed and running[p] < most]
        assert (pick is not None) == bool(room)
        if pick is None:
            for place in list(running.elements()):
                found.ended(place)
            running.clear()
            continue
        assert pick.place in room
        found.begun(pick)
        running[pick.place] += 1
        if outcome != "wait":
            found.ended(pick.place)
            running[pick.place] -= 1
            if outcome == "ok":
                found.succeeded(pick.place)
            else:
                found.failed(pick.place, now, draw)


def test_a_model_is_unstable_after_three_deaths_in_ten_minutes() -> None:
    """And stable again once they are long ago."""
    found = Stability()
    for n in range(DEATHS):
        assert not found.unstable(float(n))
        found.died(float(n))
    assert found.unstable(DEATHS_WITHIN_S)
    assert not found.unstable(DEATHS_WITHIN_S + 1)
