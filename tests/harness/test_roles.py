"""Roles: what an evaluator has to be, read from its tensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest

from harness import EVALUATOR_FLOOR_BITS, Roles
from shim import BadModelFile, InvalidRequest, RoleViolation, Shim, UnknownModel
from shim.config import Role
from shim.model_info import ModelInfo
from traces import RunTrace


def shim_of(models: Mapping[str, Mapping[str, Any]]) -> Shim:
    """A shim that is never asked for anything that needs a keeper."""
    return Shim({"budget": {"device": "host"}, "models": models})


def entry(path: Path, role: str | None = None) -> dict[str, Any]:
    """A local model's entry."""
    return {"path": str(path), "context": 1024} | ({"role": role} if role else {})


def info(name: str, role: str, bits: float, identity: str) -> ModelInfo:
    """A model that exists only here."""
    return ModelInfo(name, role, remote=False, identity=identity, min_bits_per_weight=bits)


@pytest.mark.parametrize("role", get_args(Role))
def test_every_role_of_the_configuration_can_be_asked_for(role: Role) -> None:
    """A reranker could be configured, and not be found."""
    assert Roles([info("one", role, 16.0, "one")]).the(role) == "one"


def test_describe_reads_the_file_and_not_its_name(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """A file that calls itself Q8_0 is what its tensors are."""
    liar = tmp_path / "honest-Q8_0.gguf"
    shutil.copy(tiny_models["producer"], liar)
    found = shim_of({"m": entry(liar, "producer") | {"slots": 2}}).describe("m")
    assert found.quantization == "Q4_0"
    assert found.min_bits_per_weight == 4.5
    assert found.architecture == "qwen2"
    assert found.role == "producer"
    assert found.context_per_slot == 512
    assert found.kv_bytes_per_token == 1536  # 3 layers of 128-wide keys and values in F16
    assert found.file == liar
    assert found.parameters is not None
    assert found.parameters > 1_000_000


def test_describe_knows_copies_and_links_as_one_model(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Identity is the weights': a copy and a link are the same model, another file is not."""
    copy, link = tmp_path / "copy.gguf", tmp_path / "link.gguf"
    shutil.copy(tiny_models["producer"], copy)
    link.symlink_to(tiny_models["producer"])
    shim = shim_of(
        {
            "original": entry(tiny_models["producer"]),
            "copy": entry(copy),
            "link": entry(link),
            "other": entry(tiny_models["evaluator"]),
        }
    )
    original = shim.describe("original").identity
    assert shim.describe("copy").identity == original
    assert shim.describe("link").identity == original
    assert shim.describe("other").identity != original


def test_describe_of_what_is_not_there_is_typed(tmp_path: Path) -> None:
    """An unknown name and a missing file are the errors they are everywhere else."""
    shim = shim_of({"m": entry(tmp_path / "missing.gguf")})
    with pytest.raises(UnknownModel, match="unknown"):
        shim.describe("unknown")
    with pytest.raises(BadModelFile, match=r"missing\.gguf"):
        shim.describe("m")


def test_a_q8_evaluator_beside_another_producer_is_accepted(tiny_models: dict[str, Path]) -> None:
    """The usual pair passes, and models without a role are no part of it."""
    shim = shim_of(
        {
            "writer": entry(tiny_models["producer"], "producer"),
            "judge": entry(tiny_models["evaluator"], "evaluator"),
            "extra": entry(tiny_models["classifier"]),
        }
    )
    roles = Roles.of(shim)
    assert roles.the("producer") == "writer"
    assert roles.the("evaluator") == "judge"
    assert roles.names("planner") == ()
    assert roles.unverified == ()


def test_an_evaluator_below_q8_is_refused_with_numbers(tiny_models: dict[str, Path]) -> None:
    """The floor counts by the coarsest matrix, and the error says both figures."""
    shim = shim_of({"judge": entry(tiny_models["producer"], "evaluator")})
    with pytest.raises(RoleViolation, match=r"4\.5 bits per weight.*8\.5") as caught:
        Roles.of(shim)
    assert caught.value.facts["bits_per_weight"] == 4.5
    assert caught.value.facts["needed_bits_per_weight"] == EVALUATOR_FLOOR_BITS
    assert caught.value.facts["quantization"] == "Q4_0"


@pytest.mark.parametrize("bits", [8.5, 16.0, 32.0])
def test_the_floor_itself_and_everything_finer_pass(bits: float) -> None:
    """Q8_0, F16, BF16 and F32 are good enough."""
    assert Roles([info("judge", "evaluator", bits, "x")]).names("evaluator") == ("judge",)


@pytest.mark.parametrize("bits", [0.0, 6.5625, 8.0, 8.4999])
def test_everything_coarser_than_the_floor_is_refused(bits: float) -> None:
    """Also what is only a little coarser, and a file without any matrix."""
    with pytest.raises(RoleViolation):
        Roles([info("judge", "evaluator", bits, "x")])


def test_an_evaluator_may_not_judge_its_own_work(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """The same weights in two roles are refused, also when one is a copy under another name."""
    copy = tmp_path / "other-name.gguf"
    shutil.copy(tiny_models["evaluator"], copy)
    shim = shim_of(
        {
            "writer": entry(copy, "producer"),
            "judge": entry(tiny_models["evaluator"], "evaluator"),
        }
    )
    with pytest.raises(RoleViolation, match="its own work") as caught:
        Roles.of(shim)
    assert caught.value.facts["producer"] == "writer"


def test_remote_evaluators_are_named_as_unverified() -> None:
    """Their tensors cannot be read here, and the error says so."""
    far = {"url": "http://127.0.0.1:9/v1", "model_id": "big", "role": "evaluator"}
    writer = far | {"role": "producer", "model_id": "other"}
    assert Roles.of(shim_of({"judge": far, "writer": writer})).unverified == ("judge",)


def test_the_same_remote_model_cannot_be_both() -> None:
    """One endpoint and one model id are one model, whatever it is called here."""
    far = {"url": "http://127.0.0.1:9/v1", "model_id": "big"}
    shim = shim_of({"judge": far | {"role": "evaluator"}, "writer": far | {"role": "producer"}})
    with pytest.raises(RoleViolation, match="one model"):
        Roles.of(shim)


def test_the_one_model_of_a_role_needs_exactly_one() -> None:
    """None and two are both refused, with what was found."""
    roles = Roles([info("a", "producer", 4.5, "x"), info("b", "producer", 4.5, "y")])
    with pytest.raises(RoleViolation, match="2 models have the role producer"):
        roles.the("producer")
    with pytest.raises(RoleViolation, match="0 models have the role planner"):
        roles.the("planner")


def test_an_evaluator_may_be_overridden_by_its_name_and_the_trace_says_so(tmp_path: Path) -> None:
    """It is one of the roles then, with the reason against it; a name that is no evaluator's is refused."""
    models = [info("judge", "evaluator", 4.5, "x"), info("writer", "producer", 4.5, "y")]
    with RunTrace(directory=tmp_path) as run:
        roles = Roles(models, overrides=["judge"])
    assert roles.the("evaluator") == "judge"
    assert "4.5 bits per weight" in roles.overridden["judge"]
    assert run.trace_path is not None
    events = json.loads(run.trace_path.read_text("utf-8"))
    (said,) = [e["args"]["overridden"] for e in events if e["name"] == "role overridden"]
    assert said == roles.overridden["judge"]
    with pytest.raises(InvalidRequest, match="writer cannot be overridden"):
        Roles(models, overrides=["writer"])
    assert Roles([info("judge", "evaluator", 8.5, "x")], overrides=["judge"]).overridden == {}
