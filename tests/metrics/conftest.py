"""A Shim over scripted engines whose keeper publishes metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from shim import Shim
from shim.keeper.catalog.catalog import CatalogEngine
from tests.metrics.scrapes import Watched

Open = Callable[..., Watched]


@pytest.fixture
def watched(tiny_models: dict[str, Path], runtime_dir: Path) -> Iterator[Open]:
    """Opens a Shim with models `a` (two slots) and `b`, of which one fits, and sections of the test."""
    with ExitStack() as stack:

        def opened(scripts: dict[str, Script] | None = None, **sections: Any) -> Watched:
            def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
                return ScriptedEngine(entry.names[0], runtime, (scripts or {}).get(entry.names[0]))

            place = runtime_dir / "metrics.sock"
            models = {
                "a": {"path": str(tiny_models["classifier"]), "context": 1024, "slots": 2},
                "b": {"path": str(tiny_models["producer"]), "context": 1024},
            }
            config = {
                "budget": {"device": "host", "limit": "30MB", "max_wait": 5},
                "metrics": {"prometheus": str(place)},
                "models": models,
            }
            shim = stack.enter_context(Shim(config | sections, factory=make))
            return Watched(shim, place)

        yield opened
