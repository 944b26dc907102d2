"""The evaluator's floor of Q8_0 holds wherever its role is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from harness import Pipeline, Stage
from shim import RoleViolation, Shim
from shim.keeper.catalog.catalog import CatalogEngine


@pytest.fixture
def file(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A judge's file that is Q4 by its tensors, whatever its name says."""
    path = tmp_path / "judge-Q8_0.gguf"
    shutil.copy(tiny_models["producer"], path)
    return path


@pytest.fixture
def shim(file: Path, tiny_models: dict[str, Path]) -> Iterator[Shim]:
    """A writer, and a judge whose file is too coarse; engines are scripted."""

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        return ScriptedEngine(entry.names[0], runtime, Script(tokens=["fine"]))

    models = {
        "writer": {"path": str(tiny_models["classifier"]), "context": 256},
        "judge": {"path": str(file), "context": 256, "role": "evaluator"},
    }
    with Shim({"budget": {"device": "host"}, "models": models}, factory=make) as found:
        yield found


USES: dict[str, Callable[[Shim], Any]] = {
    "chat": lambda shim: shim.chat("judge", "Grade this."),
    "stream": lambda shim: list(shim.stream("judge", "Grade this.")),
    "load": lambda shim: shim.load("judge"),
    "pin": lambda shim: shim.pin("judge"),
    "declare": lambda shim: shim.declare(["writer", "judge"]),
    "plan": lambda shim: shim.plan(["writer", "judge"]).__enter__(),
}


@pytest.mark.parametrize("use", USES)
def test_a_coarse_evaluator_is_refused_by_every_call(shim: Shim, use: str) -> None:
    """The error has the figures; another model is served as before."""
    with pytest.raises(RoleViolation, match=r"4\.5 bits per weight.*8\.5") as caught:
        USES[use](shim)
    assert caught.value.facts["model"] == "judge"
    assert shim.chat("writer", "Hello.").content == "fine"


def test_a_pipeline_with_a_coarse_evaluator_ends_before_its_first_stage(shim: Shim) -> None:
    """No draft is written that could not be judged afterwards."""
    ran: list[str] = []
    stages = [
        Stage("write", "writer", lambda _: ran.append("write")),
        Stage("judge", "judge", lambda _: ran.append("judge")),
    ]
    with pytest.raises(RoleViolation):
        Pipeline(stages, shim).run(["one"])
    assert ran == []


def test_an_evaluator_whose_file_is_replaced_by_a_fine_one_is_declared_and_served(
    shim: Shim, file: Path, tiny_models: dict[str, Path]
) -> None:
    """The refusal belongs to the file that was read."""
    with pytest.raises(RoleViolation):
        shim.declare(["judge"])
    shutil.copy(tiny_models["evaluator"], file)
    shim.declare(["judge"])
    assert shim.chat("judge", "Grade this.").content == "fine"
