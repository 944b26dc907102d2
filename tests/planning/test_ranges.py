"""Contexts and slots with a minimum and a preferred value."""

import copy
import pickle
from typing import Any

import pytest

from budget.errors import ConfigError
from shim.config import Config
from shim.config.schema.values import Span
from shim.placement.requested import sizes_of


def config(**keys: Any) -> Config:
    """A configuration of one model with these keys."""
    return Config.from_mapping({"models": {"m": {"path": "m.gguf", **keys}}})


def test_a_range_counts_as_its_preferred_number_and_survives_a_round_trip() -> None:
    """Read as one number it is the preferred one; written out, the range is whole again."""
    given = {"min": 4096, "preferred": 16384}
    made = config(context=given, slots={"min": 1, "preferred": 4})
    entry = made.models["m"]
    assert (entry.context, entry.context.least) == (Span(16384, 4096), 4096)
    assert entry.context_per_slot == 4096
    again = Config.from_mapping(made.to_mapping())
    assert again.models == made.models
    assert made.to_mapping()["models"]["m"]["context"] == given


def test_a_range_differs_from_its_preferred_number_alone() -> None:
    """A change of the minimum is a change of the configuration."""
    plain, ranged = config(context=8192), config(context={"min": 4096, "preferred": 8192})
    assert plain.diff(ranged).changed == {"m": ("context",)}
    assert copy.deepcopy(ranged.models["m"].context) == Span(8192, 4096)
    assert pickle.loads(pickle.dumps(Span(8, 2))) == Span(8, 2)
    assert Span(8) == 8


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"context": {"min": 8192, "preferred": 4096}}, "min is above preferred"),
        ({"context": {"preferred": 4096}}, "exactly min and preferred"),
        ({"context": {"min": 0, "preferred": 4096}}, "not a whole number"),
        ({"slots": {"min": 1, "preferred": 257}}, "not a whole number"),
        ({"context": {"min": 2, "preferred": 99}, "slots": 4}, "2 tokens for 4 slots"),
    ],
)
def test_an_impossible_range_is_an_error_with_the_reason(keys: dict[str, Any], words: str) -> None:
    """Nothing about a range is guessed."""
    with pytest.raises(ConfigError, match=words):
        config(**keys)


def test_the_ladder_goes_from_preferred_to_least_context_first() -> None:
    """Contexts are halved before slots, and the least of both is the last step."""
    entry = config(context={"min": 3000, "preferred": 16384}, slots={"min": 1, "preferred": 4})
    assert sizes_of(entry.models["m"]) == (
        (16384, 4), (8192, 4), (4096, 4), (3000, 4), (3000, 2), (3000, 1),
    )  # fmt: skip
    assert sizes_of(config(context=512).models["m"]) == ((512, 1),)
