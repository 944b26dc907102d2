"""The evaluator's floor of Q8_0 holds wherever its role is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.scripted import Script, ScriptedEngine
from harness import Dimension, EvaluatorPool, Judge, Pipeline, Refine, Roles, Rubric, Stage
from shim import RoleViolation, Shim, UnknownModel
from shim.keeper.catalog import preparing
from shim.keeper.catalog.catalog import CatalogEngine


@pytest.fixture
def file(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A judge's file that is Q4 by its tensors, whatever its name says."""
    path = tmp_path / "judge-Q8_0.gguf"
    shutil.copy(tiny_models["producer"], path)
    return path


def shim_of(writer: Path, **judges: dict[str, Any]) -> Shim:
    """A writer, and judges; engines are scripted."""

    def make(entry: CatalogEngine, runtime: Path) -> ScriptedEngine:
        judged = json.dumps({"fine": {"reasons": "It is.", "score": 9}})
        name = entry.names[0]
        return ScriptedEngine(
            name, runtime, Script(tokens=[judged if name != "writer" else "fine"])
        )

    models = {"writer": {"path": str(writer), "context": 256}, **judges}
    return Shim({"budget": {"device": "host"}, "models": models}, factory=make)


def judge_of(file: Path, **keys: Any) -> dict[str, Any]:
    """An evaluator as it is configured."""
    return {"path": str(file), "context": 256, "role": "evaluator", **keys}


@pytest.fixture
def shim(file: Path, tiny_models: dict[str, Path]) -> Iterator[Shim]:
    """A writer, and a judge whose file is too coarse."""
    with shim_of(tiny_models["classifier"], judge=judge_of(file)) as found:
        yield found


@pytest.fixture
def pair(file: Path, tiny_models: dict[str, Path]) -> Iterator[Shim]:
    """Two judges that are too coarse, each the other's fallback."""
    judges = {
        "judge": judge_of(file, fallback="second"),
        "second": judge_of(file, fallback="judge"),
    }
    with shim_of(tiny_models["classifier"], **judges) as found:
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
    assert "score" in shim.chat("judge", "Grade this.").content


@pytest.mark.parametrize("use", USES)
def test_a_coarse_evaluator_serves_the_object_that_overrides_it_by_name(
    shim: Shim, use: str
) -> None:
    """Whatever it was asked before; the keeper's status says that it is unfit, and overridden."""
    with pytest.raises(RoleViolation):
        USES[use](shim)
    assert shim.status()["unavailable"]["judge"]["overridden_by"] == 0
    shim.override_role(["judge"])
    USES[use](shim)
    row = shim.status()["unavailable"]["judge"]
    assert ("8.5" in row["message"], row["overridden_by"]) == (True, 1)


def test_a_coarse_evaluator_that_refine_overrides_judges_though_the_configuration_has_its_role(
    shim: Shim,
) -> None:
    """The record says so; an override of nothing but its name is needed."""
    rubric = Rubric([Dimension("fine", "It is fine.")])
    with pytest.raises(RoleViolation, match="name it in `overrides` of `Refine`"):
        Refine("writer", "judge", rubric, shim=shim)
    record = Refine("writer", "judge", rubric, shim=shim, overrides=["judge"]).run("Write.")
    assert (record.composite, record.settings.overrides) == (9.0, ("judge",))


def test_roles_that_override_an_evaluator_let_their_shim_use_it(shim: Shim) -> None:
    """So a pipeline with it begins."""
    assert set(Roles.of(shim, overrides=["judge"]).overridden) == {"judge"}
    stage = Stage("judge", "judge", lambda call: call.chat("Grade this.").content)
    assert "score" in Pipeline([stage], shim).run(["one"])[0].result(stage)


def test_a_coarse_evaluator_is_not_pinned_by_its_role(shim: Shim) -> None:
    """Nothing is loaded for a model that most callers may not use."""
    shim.override_role(["judge"])
    shim.chat("judge", "Grade this.")
    assert not any(row["pinned"] for row in shim.status()["engines"])


def test_an_override_holds_for_its_model_and_for_no_fallback(pair: Shim) -> None:
    """The one that takes over is refused by its own name."""
    pair.override_role(["judge"])
    for _ in range(3):
        pair._session.routes.died("judge")
    with pytest.raises(RoleViolation, match="evaluator second"):
        pair.chat("judge", "Grade this.")


def test_a_fallback_that_is_overridden_takes_over_from_a_model_that_is_not(pair: Shim) -> None:
    """It was refused, because the request was that of the other model."""
    pair.override_role(["second"])
    for _ in range(3):
        pair._session.routes.died("judge")
    assert pair.chat("judge", "Grade this.").served_by == "second"


def test_a_judge_that_is_refused_leaves_no_override_behind(pair: Shim) -> None:
    """The names that it was given hold for its judges, and it has none."""
    rubric, pool = Rubric([Dimension("fine", "It is fine.")]), EvaluatorPool(["judge", "second"])
    with pytest.raises(RoleViolation, match="second"):
        Judge(pair, rubric, pool, overridden=["judge"])
    with pytest.raises(RoleViolation):
        pair.chat("judge", "Grade this.")


def test_a_coarse_evaluator_on_another_machine_is_not_loaded_for_a_declaration(
    file: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is not looked at then, and counts as it was read last."""
    monkeypatch.setattr(preparing, "lie_far", lambda *_: True)
    with shim_of(tiny_models["classifier"], judge=judge_of(file)) as shim:
        shim.declare(["judge"])
        assert shim.status()["declared"] == []
        shim.override_role(["judge"])
        shim.declare(["judge"])
        assert len(shim.status()["declared"]) == 1


def test_an_override_of_a_name_that_is_not_configured_is_refused(shim: Shim) -> None:
    """With the names that are."""
    with pytest.raises(UnknownModel, match="judge, writer"):
        shim.override_role(["jugde"])


def test_an_error_that_only_another_file_mends_does_not_say_try_again(
    tiny_models: dict[str, Path],
) -> None:
    """However often it is asked; no pause is named, because none would help."""
    models = {"vec": {"path": str(tiny_models["classifier"]), "role": "embedder"}}
    with Shim({"budget": {"device": "host"}, "models": models}, inline=True) as shim:
        refused = [_refused(shim) for _ in range(3)]
    assert len({str(error) for error in refused}) == 1
    assert refused[0].retry_after_s is None


def _refused(shim: Shim) -> RoleViolation:
    with pytest.raises(RoleViolation) as caught:
        shim.embed("vec", "Hello.")
    return caught.value
