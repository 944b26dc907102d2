"""The order of a graph's steps and of a pipeline's stages: what waits for what, and what may start."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import Graph, Stage, Step, StepContext
from harness.pipeline import legs_of, needs_of
from shim import ConfigError
from tests.harness.told import ToldShim

QUIET = 30
"""So many passes of an event loop are more than anything needs to start."""


@st.composite
def rows(draw: st.DrawFn) -> list[Stage[None]]:
    """Stages that wait for any of the earlier ones, or for the one just before them."""
    stages: list[Stage[None]] = []
    for number in range(draw(st.integers(1, 8))):
        chosen = st.lists(st.sampled_from(stages), unique=True) if stages else st.just([])
        after = draw(st.none() | chosen.map(tuple))
        stages.append(Stage(str(number), "m", lambda _: None, after))
    return stages


@settings(max_examples=30, deadline=None)
@given(rows(), st.randoms(use_true_random=False))
def test_a_step_starts_once_and_as_soon_as_its_needs_are_done(
    stages: list[Stage[None]], dice: Random
) -> None:
    """Whatever ends first: nothing starts early, late or twice, and all of it ends."""
    needs, running, done = needs_of(stages), dict[str, asyncio.Event](), set[str]()
    started: list[str] = []

    def work(name: str) -> Callable[[StepContext], Awaitable[None]]:
        async def run(_: StepContext) -> None:
            started.append(name)
            running[name] = asyncio.Event()
            await running[name].wait()

        return run

    async def scenario() -> None:
        listed = dice.sample(sorted(needs), len(needs))
        graph = Graph([Step(n, work(n), tuple(needs[n])) for n in listed], shim=ToldShim({}))
        run = asyncio.create_task(graph.arun())
        while len(done) < len(needs):
            for _ in range(QUIET):
                await asyncio.sleep(0)
            assert set(started) == {name for name in needs if needs[name] <= done}
            name = dice.choice(sorted(running))
            running.pop(name).set()
            done.add(name)
        assert sorted((await run).outcomes) == sorted(needs)

    asyncio.run(scenario())
    assert sorted(started) == sorted(needs)


@given(rows())
def test_needs_are_transitive_and_follow_the_list(stages: list[Stage[None]]) -> None:
    """A need's needs are needs; all of them come earlier, so that the list is a topological order."""
    needs = needs_of(stages)
    order = list(needs)
    assert order == [stage.name for stage in stages]
    for name, known in needs.items():
        assert known <= set(order[: order.index(name)])
        assert all(needs[other] <= known for other in known)


@given(rows())
def test_a_stage_has_a_leg_of_its_own_exactly_if_none_can_run_beside_it(
    stages: list[Stage[None]],
) -> None:
    """So a row stays on the caller's thread, and no two stages of different legs could run together."""
    needs = needs_of(stages)
    legs = legs_of(stages, needs)
    assert [stage for leg in legs for stage in leg] == stages

    def beside(one: str) -> set[str]:
        return {n for n in needs if n != one and n not in needs[one] and one not in needs[n]}

    for leg in legs:
        names = {stage.name for stage in leg}
        assert all(beside(name) <= names for name in names)
        assert all(bool(beside(name)) == (len(leg) > 1) for name in names)


def test_without_after_stages_are_a_row() -> None:
    """Each waits for all before it; an empty `after` waits for nothing."""
    a, b, c = (Stage(name, "m", lambda _: None) for name in "abc")
    d = Stage("d", "m", lambda _: None, after=())
    assert needs_of([a, b, c, d]) == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": set()}


def test_a_stage_that_waits_for_what_is_not_before_it_is_refused() -> None:
    """A later one, and so any cycle, and one that is not in the list; the error names both."""
    early = Stage("early", "m", lambda _: None)
    late = Stage("late", "m", lambda _: None, after=(early,))
    with pytest.raises(
        ConfigError, match=r"late waits for stage early, which does not come before"
    ):
        needs_of([late, early])
    with pytest.raises(ConfigError, match=r"late waits for stage early, which is not in the"):
        needs_of([Stage("early", "m", lambda _: None), late])
