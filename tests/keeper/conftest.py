"""Fixtures of the keeper's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import Config
from shim.keeper.catalog.catalog import Catalog, build_catalog
from tests.keeper.support import World, world


@pytest.fixture
def keeper_world(tiny_models: dict[str, Path]) -> Iterator[World]:
    """A world with two chat models and an embedder that all fit."""
    with world() as place:
        place.configure(
            {
                # What is asked to count for ever does, and is not ended by a full context.
                "a": {
                    "path": str(tiny_models["classifier"]),
                    "context": 2048,
                    "engine_args": ["--context-shift"],
                },
                "b": {"path": str(tiny_models["producer"]), "context": 2048},
                "e": {
                    "path": str(tiny_models["embedder"]),
                    "role": "embedder",
                    "context": 512,
                },
            }
        )
        yield place


@pytest.fixture(scope="session")
def catalog(tiny_models: dict[str, Path]) -> Catalog:
    """Two models, `a` and `b`, of which one fits."""
    names = (("a", "classifier"), ("b", "producer"))
    models = {n: {"path": str(tiny_models[file]), "context": 1024} for n, file in names}
    budget = {"device": "host", "limit": "30MB", "reserve": 0}
    return build_catalog(Config.from_mapping({"budget": budget, "models": models}))
