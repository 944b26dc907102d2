"""Fixtures of the keeper's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keeper.support import World, world


@pytest.fixture
def keeper_world(tiny_models: dict[str, Path]) -> Iterator[World]:
    """A world with two chat models and an embedder that all fit."""
    with world() as place:
        place.configure(
            {
                "a": {"path": str(tiny_models["classifier"]), "context": 2048},
                "b": {"path": str(tiny_models["producer"]), "context": 2048},
                "e": {
                    "path": str(tiny_models["embedder"]),
                    "role": "embedder",
                    "context": 512,
                },
            }
        )
        yield place
