"""A trace of gigabytes is summed up in bounded memory, and the sums are those of all its requests."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.traces.test_trace_summaries import STORY, Event, request, slice_of
from traces.reading import covered_times
from traces.reading import spans_of as spans_of_module
from traces.reading.covered_times import CoveredTimes, covered
from traces.reading.spans_of import spans_of
from traces.reading.summary import summarise


def test_times_in_any_order_cover_what_they_cover(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a count of moments, with batches of few and of many, and intervals that touch."""
    rolled = random.Random(14)
    for together in (1, 3, 1000):
        monkeypatch.setattr(covered_times, "_TOGETHER", together)
        for _ in range(50):
            times = [(b, b + rolled.randrange(9)) for b in rolled.choices(range(90), k=20)]
            moments = {m for begin, end in times for m in range(begin, end)}
            union = CoveredTimes(times)
            found = list(union)
            assert {m for b, e in found for m in range(int(b), int(e))} == moments
            assert all(one[1] < two[0] for one, two in itertools.pairwise(found))
            inside = [m for m in moments if 10 <= m < 60]
            assert covered([union], 10, 60) == len(inside)
            halves = [CoveredTimes(times[:10]), CoveredTimes(times[10:])]
            assert covered(halves, 10, 60) == len(inside)


def test_requests_that_are_no_longer_open_are_in_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few are put together at a time."""
    whole = summarise(spans_of(STORY))
    monkeypatch.setattr(spans_of_module, "_MOST_OPEN", 1)
    assert summarise(spans_of(STORY)) == whole


def many(count: int) -> Iterator[Event]:
    """A run of so many requests of two models, one after another."""
    yield slice_of("run", 0, count)
    for number in range(count):
        yield from request(
            number, "ab"[number % 2], (number, number + 0.1, number + 0.2, number + 0.3, number + 1)
        )


def test_ten_times_the_requests_take_no_ten_times_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few dozen bytes a request are left of it: a gigabyte of trace takes less than a tenth of that."""
    monkeypatch.setattr(spans_of_module, "_MOST_OPEN", 100)
    monkeypatch.setattr(covered_times, "_TOGETHER", 100)
    tracemalloc.start()
    try:
        spans = spans_of(many(4_000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert summarise(spans).models["a"].requests == 2_000
    assert peak / 4_000 < 150
