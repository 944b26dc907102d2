"""Models that do not meet their roles: embedders that make no vectors, evaluators that are too coarse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.gguf import read_header
from shim import RoleViolation
from shim.cli.commands.config.command import config_group
from shim.config import Config, ModelEntry
from shim.config.role_checks import check_role
from shim.keeper.catalog.catalog import build_catalog
from tools.shapes import SHAPES, write

RERANKER = 4


def encoder(folder: Path, pooling: int | None) -> Path:
    """An encoder with that pooling in its header, or with none."""
    base = SHAPES["bge-small"]
    extra = {key: value for key, value in base.extra.items() if key != "pooling_type"}
    if pooling is not None:
        extra["pooling_type"] = pooling
    return write(replace(base, n_layers=1, extra=extra), folder)


def chat_model(folder: Path) -> Path:
    """A decoder without any pooling."""
    return write(replace(SHAPES["qwen3-0.6b"], n_layers=1), folder)


def embedder(path: Path, *engine_args: str) -> ModelEntry:
    """The entry of an embedder."""
    model = {"path": str(path), "role": "embedder", "engine_args": list(engine_args)}
    return Config.from_mapping({"models": {"vec": model}}).models["vec"]


@pytest.mark.parametrize("pooling", [1, 2, 3])
def test_a_file_that_pools_a_text_to_a_vector_is_an_embedder(pooling: int, tmp_path: Path) -> None:
    """Mean, the first token, the last token."""
    path = encoder(tmp_path, pooling)
    check_role("vec", embedder(path), read_header(path))
    with pytest.raises(RoleViolation):
        check_role("vec", embedder(path, "--pooling", "none"), read_header(path))


@pytest.mark.parametrize(
    ("pooling", "kind"), [(RERANKER, "a reranker"), (0, "of each token"), (None, "not given")]
)
def test_a_file_that_makes_no_vector_of_a_text_is_no_embedder(
    pooling: int | None, kind: str, tmp_path: Path
) -> None:
    """The error says what the file is by its header."""
    path = encoder(tmp_path, pooling)
    with pytest.raises(RoleViolation, match=kind) as caught:
        check_role("vec", embedder(path), read_header(path))
    assert caught.value.facts["role"] == "embedder"


def test_a_chat_model_is_an_embedder_only_with_a_pooling_that_was_written(tmp_path: Path) -> None:
    """The last pooling counts, as llama-server reads it; a reranking option counts as one."""
    path = chat_model(tmp_path)
    header = read_header(path)
    check_role("vec", embedder(path, "--pooling", "mean"), header)
    check_role("vec", embedder(path, "--pooling", "none", "--pooling=last"), header)
    for arguments in ((), ("--pooling", "mean", "--reranking"), ("--pooling", "rank")):
        with pytest.raises(RoleViolation):
            check_role("vec", embedder(path, *arguments), header)


def test_a_reranker_as_embedder_is_not_prepared(tmp_path: Path) -> None:
    """Its requests get the error; no engine is started for it."""
    model = {"path": str(encoder(tmp_path, RERANKER)), "role": "embedder"}
    found = build_catalog(
        Config.from_mapping({"budget": {"device": "host"}, "models": {"vec": model}})
    )
    assert isinstance(found.errors["vec"], RoleViolation)
    assert found.prepared == {}


def test_config_check_names_models_that_do_not_meet_their_roles(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """With key and line; a model that meets its role is not named."""
    coarse, fine = tiny_models["producer"], tiny_models["evaluator"]
    reranker = encoder(tmp_path, RERANKER)
    file = tmp_path / "keepwarm.toml"
    file.write_text(
        f'[models.vec]\npath = "{reranker}"\nrole = "embedder"\n'
        f'[models.judge]\npath = "{coarse}"\nrole = "evaluator"\n'
        f'[models.other]\npath = "{fine}"\nrole = "evaluator"\n'
    )
    ran = CliRunner().invoke(config_group, ["check", "--config", str(file), "--json"])
    told = json.loads(ran.stdout)
    assert not told["ok"]
    problems = {problem["key"]: problem for problem in told["problems"]}
    assert set(problems) == {"models.vec.role", "models.judge.role"}
    assert problems["models.vec.role"]["line"] == 3
    assert "a reranker" in problems["models.vec.role"]["message"]
    assert "8.5" in problems["models.judge.role"]["message"]
