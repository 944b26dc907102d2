"""The order in which work starts: models are not evicted by one another in turns."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from types import FrameType

import pytest

from harness import Graph, Step
from harness.graphs.graph import _order, uses_of
from harness.graphs.turns import AskFit, Models, ModelTurns
from tests.harness.told import ToldShim, in_turn

SHIM = ToldShim({"m": in_turn("x")})


def two_of(models: Models) -> bool:
    """A budget for two models."""
    return len(models) <= 2


def start_all(turns: ModelTurns) -> list[int]:
    """Everything that starts now."""
    started = []
    while (found := turns.next(two_of)) is not None:
        assert isinstance(found, int)
        started.append(found)
    return started


def test_six_branches_over_three_models_use_each_model_once() -> None:
    """The third waits until one of two is done with all its work."""
    turns = ModelTurns()
    for number, name in enumerate("abcabc"):
        turns.wait(number, [name])
    assert sorted(start_all(turns)) == [0, 1, 3, 4]
    turns.done(0)
    assert start_all(turns) == []
    turns.done(3)
    assert sorted(start_all(turns)) == [2, 5]


def test_work_without_a_model_never_waits() -> None:
    """It takes no bytes."""
    turns = ModelTurns()
    turns.wait(0, ["a", "b"])
    turns.wait(1, ["c"])
    turns.wait(2, [])
    assert sorted(start_all(turns)) == [0, 2]


def test_what_is_not_known_is_asked_before_anything_is_decided() -> None:
    """Whether models fit is the keeper's to say."""
    turns = ModelTurns()
    turns.wait(0, ["a"])
    turns.wait(1, ["b"])
    assert turns.next(lambda _: None) == 0
    assert turns.next(lambda _: None) == AskFit(frozenset("ab"))
    assert turns.next(lambda _: False) is None


def test_the_model_that_most_work_waits_for_comes_first() -> None:
    """One load serves them all."""
    turns = ModelTurns()
    for number, name in enumerate("abb"):
        turns.wait(number, [name])
    assert turns.next(lambda _: False) == 1


def test_whatever_comes_and_goes_everything_runs_once_and_nothing_thrashes() -> None:
    """Random arrivals and ends: never more models in use than fit, and none is left waiting."""
    draw = random.Random(7)
    for _ in range(200):
        turns, running, started = ModelTurns(), set[int](), list[int]()
        models = {number: draw.sample("abcd", draw.randint(0, 2)) for number in range(12)}
        coming = list(models)
        while coming or running:
            if coming and draw.random() < 0.5:
                number = coming.pop(0)
                turns.wait(number, models[number])
            elif running:
                number = draw.choice(sorted(running))
                running.discard(number)
                turns.done(number)
            now = start_all(turns)
            running.update(now)
            started += now
            assert len(turns.in_use) <= 2
        assert sorted(started) == list(models)


def calls_of(work: Callable[[], object]) -> int:
    """How many functions work calls: what it takes, without a clock."""
    count = [0]

    def heard(_frame: FrameType, event: str, _value: object) -> None:
        count[0] += event in ("call", "c_call")

    sys.setprofile(heard)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count[0]


@pytest.mark.parametrize("names", [[()], ["a", "b", "c"], [("a", "b"), "c"]])
def test_what_starts_next_is_found_among_thousands_as_among_few(names: list[Sequence[str]]) -> None:
    """A map over twenty thousand items took minutes, because each looked at all others."""

    def whole(count: int) -> None:
        turns = ModelTurns()
        for number in range(count):
            turns.wait(number, names[number % len(names)])
        left = start_all(turns)
        while left:
            turns.done(left.pop())
            left += start_all(turns)

    assert calls_of(lambda: whole(2000)) < 15 * calls_of(lambda: whole(200))


def test_a_long_chain_of_steps_is_put_in_order_in_time_with_its_length() -> None:
    """Ten thousand steps took minutes before the first one ran."""

    def chain(count: int) -> list[Step]:
        return [Step(str(n), str, [str(n - 1)] if n else [], "m") for n in range(count)]

    short, long = chain(50), chain(500)
    assert _order(long, uses_of(long)) == ["m"] * 500
    assert calls_of(lambda: _order(long, uses_of(long))) < 15 * calls_of(
        lambda: _order(short, uses_of(short))
    )
    assert calls_of(lambda: Graph(long, shim=SHIM)) < 15 * calls_of(lambda: Graph(short, shim=SHIM))
