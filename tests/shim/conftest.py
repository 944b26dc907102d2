"""A Shim over scripted engines: the whole path of a call, without a model's time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.scripted import Script, ScriptedEngine
from shim import Shim
from shim.keeper.catalog.catalog import CatalogEngine


@dataclass
class Stage:
    """The scripted engines of one test, in the order in which they were started."""

    shim: Shim
    scripts: dict[str, Script] = field(default_factory=dict)
    engines: list[ScriptedEngine] = field(default_factory=list)

    def make(self, entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        """The factory that the keeper uses."""
        engine = ScriptedEngine(entry.names[0], runtime, self.scripts.get(entry.names[0]))
        self.engines.append(engine)
        return engine

    def lease_count(self) -> int:
        """Leases at the keeper now."""
        return sum(len(row["leases"]) for row in self.shim.status()["engines"])


@pytest.fixture
def stage(tiny_models: dict[str, Path]) -> Iterator[Stage]:
    """Two models of which one fits at a time, and a judge that is pinned."""
    config = {
        "budget": {"device": "host", "limit": "60MB", "max_wait": 5},
        "models": {
            "a": {"path": str(tiny_models["classifier"]), "context": 1024, "slots": 2},
            "b": {"path": str(tiny_models["producer"]), "context": 1024},
            "remote": {"url": "http://127.0.0.1:9/v1", "model_id": "far"},
        },
    }
    stage = Stage.__new__(Stage)
    stage.scripts, stage.engines = {}, []
    stage.shim = Shim(config, factory=stage.make)
    with stage.shim:
        yield stage
