"""Policies say what a loss costs; the rest is not theirs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from budget.books.engines import EngineRecord
from budget.books.states import State
from budget.errors import ConfigError
from budget.eviction.policies import POLICY_NAMES, Lru, make_policy
from budget.eviction.policies.eviction_policy import Stateless
from tests.budget.machine import engine, model, shell_of


class Dear(Stateless):
    """The first in the alphabet costs most, and by far more than any other policy would charge."""

    name = "dear"
    ordered = False

    def __init__(self) -> None:
        self.uses: list[tuple[str, float]] = []

    def used(self, engine_id: str, now: float) -> None:
        """Remember it."""
        self.uses.append((engine_id, now))

    def losses(self, engines: Sequence[EngineRecord], now: float) -> list[float]:
        """Far above what the core adds for engines in use."""
        return [1e12 * (ord("z") - ord(engine.engine_id[0])) for engine in engines]


def test_the_least_recently_used_leaves_first() -> None:
    """Recency of use, not of loading."""
    shell = shell_of(100, [engine("a", 50), engine("b", 50), engine("c", 50)])
    for name in "aba":
        shell.use(name)
        shell.advance(1.0)
    shell.use("c")
    assert shell.resident() == {"a", "c"}


def test_lru_falls_with_time_and_never_below_zero() -> None:
    """The protocol: at least 0."""
    record = EngineRecord(engine("a", 1))
    record.last_used = 10.0
    losses = [Lru().losses([record], now)[0] for now in (10.0, 11.0, 1e9)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == 1.0
    assert losses[-1] > 0.0


def test_a_policy_hears_of_every_request_that_is_taken() -> None:
    """Also of those that wait; not of those that are refused."""
    policy = Dear()
    shell = shell_of(100, [engine("a", 50), engine("x", 200)], policy=policy)
    shell.ask("a")
    shell.advance(1.0)
    shell.ask("a")
    shell.ask("x")
    shell.ask("unknown")
    assert policy.uses == [("a", 0.0), ("a", 1.0)]


def test_an_idle_engine_leaves_at_once_whatever_its_loss() -> None:
    """Losses have no unit that could be mistaken for being in use."""
    shell = shell_of(100, [engine("a", 80), engine("b", 80)], policy=Dear())
    shell.use("a")
    shell.ask("b")
    assert shell.state("a") is State.EVICTING


def test_the_policy_chooses_among_idle_engines_only() -> None:
    """Pinned and leased ones are not candidates at any loss."""
    shell = shell_of(
        100,
        [engine("z", 30), engine("y", 30), engine("a", 30), engine("n", 30)],
        [model("z", pinned=True)],
        policy=Dear(),
    )
    shell.settle()
    shell.serve("y")
    shell.use("a")
    shell.use("n")
    assert shell.resident() == {"z", "y", "n"}


def test_policies_are_made_by_name_and_unknown_names_list_the_known() -> None:
    """Fresh each time."""
    for name in POLICY_NAMES:
        assert make_policy(name).name == name
        assert make_policy(name) is not make_policy(name)
    with pytest.raises(ConfigError, match="Unknown eviction policy 'newest'") as caught:
        make_policy("newest")
    assert "lru" in caught.value.hint
