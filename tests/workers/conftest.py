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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the user's module `speech`."""
    return write_speech(tmp_path)


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    """Makes a Shim of models by name, in that folder; it ends with the test."""
    made: list[Shim] = []

    def start(models: dict[str, dict[str, Any]], **sections: Any) -> Shim:
        data = {"budget": {"device": "host", "limit": "3GiB"}, **sections, "models": models}
        config = Config.from_mapping(data, base=folder)
        shim = Shim(config, inline=True, factory=engine_factory(config))
        made.append(shim)
        shim.__enter__()
        return shim

    yield start
    for shim in made:
        shim.close()
