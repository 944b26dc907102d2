"""The order of a graph of stages: what waits for what, and what may start."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stage_order import GraphProgress, needs_of
from shim import ConfigError


@dataclass(frozen=True, eq=False)
class Named:
    """A node with nothing but its place in the graph."""

    name: str
    after: tuple[Named, ...] | None = None


@st.composite
def graphs(draw: st.DrawFn) -> list[Named]:
    """Nodes that wait for any of the earlier ones, or for the one just before them."""
    nodes: list[Named] = []
    for number in range(draw(st.integers(1, 8))):
        chosen = st.lists(st.sampled_from(nodes), unique=True) if nodes else st.just([])
        nodes.append(Named(str(number), draw(st.none() | chosen.map(tuple))))
    return nodes


@given(graphs(), st.randoms(use_true_random=False))
def test_a_node_starts_once_and_as_soon_as_its_needs_are_done(
    nodes: list[Named], dice: Random
) -> None:
    """Whatever ends first: nothing starts early, late or twice, and all of it ends."""
    needs, done = needs_of(nodes), set[str]()
    progress, started = GraphProgress(needs), list[str]()
    while not progress.finished:
        started += progress.start()
        assert set(started) == {name for name in needs if needs[name] <= done}
        assert sorted([*progress.running, *progress.waiting, *done]) == sorted(needs)
        name = dice.choice(progress.running)
        progress.finish(name)
        done.add(name)
    assert sorted(started) == sorted(needs)


@given(graphs())
def test_needs_are_transitive_and_follow_the_list(nodes: list[Named]) -> None:
    """A need's needs are needs; all of them come earlier, so that the list is a topological order."""
    needs = needs_of(nodes)
    order = list(needs)
    assert order == [node.name for node in nodes]
    for name, known in needs.items():
        assert known <= set(order[: order.index(name)])
        assert all(needs[other] <= known for other in known)


def test_without_after_nodes_are_a_row() -> None:
    """Each waits for all before it; an empty `after` waits for nothing."""
    needs = needs_of([Named("a"), Named("b"), Named("c"), Named("d", after=())])
    assert needs == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": set()}


def test_a_node_that_waits_for_what_is_not_before_it_is_refused() -> None:
    """A later one, and so any cycle, and one that is not in the list; the error names both."""
    early = Named("early")
    late = Named("late", after=(early,))
    with pytest.raises(
        ConfigError, match=r"late waits for stage early, which does not come before"
    ):
        needs_of([late, early])
    with pytest.raises(ConfigError, match=r"late waits for stage early, which is not in the"):
        needs_of([Named("early"), late])
