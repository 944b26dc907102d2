"""A Shim over real Python workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import Config, Shim
from shim.keeper.engines.engine_makers import engine_factory
from tests.workers.models import write_speech

Make = Callable[..., Shim]


def started(models: dict[str, dict[str, Any]], folder: Path, **sections: Any) -> Shim:
    """A Shim of these models, whose inline keeper starts real engines and locks no device."""
    budget = {"device": "host", "limit": "3GiB"}
    keeper = {"stop_grace": 0.1}
    data = {"budget": budget, "keeper": keeper, **sections, "models": models}
    config = Config.from_mapping(data, base=folder)
    return Shim(config, inline=True, factory=engine_factory(config))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the user's module `speech`."""
    return write_speech(tmp_path)


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Makes a Shim of models by name, in that folder; it ends with the test."""
    made: list[Shim] = []

    def start(models: dict[str, dict[str, Any]], **sections: Any) -> Shim:
        made.append(started(models, folder, **sections).__enter__())
        return made[-1]

    yield start
    for shim in made:
        shim.close()
