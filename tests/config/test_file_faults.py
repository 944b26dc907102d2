"""`config check` looks into the files that are named, and into the environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.llama.binaries import build_id, find_binary
from backends.llama.known_options import check_options, known_options
from budget.errors import ConfigError
from shim.cli.commands.config.command import config_group
from shim.config import Config
from shim.config.schema.engine_args import REFUSED, parse_engine_args
from shim.keeper.catalog.catalog import build_catalog
from tests.gguf import raw

Problems = Callable[..., dict[str, Any]]


def _llama(path: Path, *keys: raw.Key) -> Path:
    path.write_bytes(raw.build([*raw.llama_keys(), *keys], raw.llama_tensors()).data)
    return path


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Problems:
    """The problems that `config check` lists for one model with these keys, by key."""
    monkeypatch.delenv("HARNESS_ENDPOINTS", raising=False)

    def run(**keys: object) -> dict[str, Any]:
        file = tmp_path / "keepwarm.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        file.write_text("\n".join(["[models.m]", *lines]))
        ran = CliRunner().invoke(config_group, ["check", "--config", str(file), "--json"])
        report = json.loads(ran.stdout)
        assert report["ok"] == (not report["problems"])
        return {p["key"].removeprefix("models.m."): p for p in report["problems"]}

    return run


def _whole() -> bytes:
    return bytes(raw.build(raw.llama_keys(), raw.llama_tensors()).data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"GGML" + bytes(100), "starts with b'GGML'"),
        (b"<!DOCTYPE html>", "starts with b'<!DO'"),
        (_whole()[:-200], "cut short"),
        (_whole()[:300], "bytes of the file are left"),
    ],
)
def test_a_damaged_file_is_a_mistake(
    content: bytes, said: str, problems: Problems, tmp_path: Path
) -> None:
    """Empty, of another kind, or cut: with the key and its line."""
    (tmp_path / "m.gguf").write_bytes(content)
    found = problems(path="m.gguf")
    assert list(found) == ["path"]
    assert said in found["path"]["message"]
    assert found["path"]["line"] == 2


def test_a_missing_shard_is_a_mistake(problems: Problems, tmp_path: Path) -> None:
    """The first is there, the second is not."""
    keys = [raw.Key(b"split.no", raw.U32, 0), raw.Key(b"split.count", raw.U32, 2)]
    _llama(tmp_path / "m-00001-of-00002.gguf", *keys)
    found = problems(path="m-00001-of-00002.gguf")
    assert "shard 2 of 2 is not there" in found["path"]["message"]


def test_files_beside_the_model_are_looked_into(problems: Problems, tmp_path: Path) -> None:
    """Each has its own key; a missing one is named once."""
    _llama(tmp_path / "m.gguf")
    (tmp_path / "cut.gguf").write_bytes(_whole()[:300])
    found = problems(
        path="m.gguf", draft_model="cut.gguf", mmproj="cut.gguf", lora=["m.gguf", "nowhere.gguf"]
    )
    assert set(found) == {"draft_model", "mmproj", "lora"}
    assert "nowhere.gguf" in found["lora"]["message"]


def test_arguments_that_do_not_suit_the_file_are_mistakes(
    problems: Problems, tmp_path: Path
) -> None:
    """The context, the layers and the cache's type are those of this model."""
    _llama(tmp_path / "m.gguf")
    assert set(problems(path="m.gguf", context=5000, role="embedder")) == {"context", "role"}
    found = problems(path="m.gguf", kv_type="q8_0")
    assert "do not divide" in found["kv_type_k"]["message"]


@pytest.mark.real
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--foo", "1"], "knows no argument --foo"),
        (["--tempe", "1"], "Did you mean --temp?"),
        (["--rope-scale=4"], '"--rope-scale", "4"'),
        (["--rope-scaling", "YARN"], "refuses --rope-scaling"),
        (["--temp", "1", "stray"], "no argument stray"),
        (["--tags"], "has no value"),
        (["--draft-max", "4"], "has been removed"),
        (["--spec-type", "draft-simple"], "needs a draft model"),
    ],
)
def test_arguments_that_llama_server_refuses_are_mistakes(
    arguments: list[str], said: str, problems: Problems, tmp_path: Path
) -> None:
    """The installed one is asked, with the parser that a start would meet."""
    _llama(tmp_path / "m.gguf")
    found = problems(path="m.gguf", engine_args=arguments)
    assert list(found) == ["engine_args"]
    assert said in found["engine_args"]["message"]


@pytest.mark.real
def test_a_start_refuses_the_same_arguments_before_it_takes_a_byte(
    tiny_models: Mapping[str, Path],
) -> None:
    """The model keeps the error; nothing is measured, and no engine is started."""
    model = {"path": str(tiny_models["producer"]), "engine_args": ["--tempe", "1"]}
    found = build_catalog(
        Config.from_mapping({"budget": {"device": "host"}, "models": {"m": model}})
    )
    assert isinstance(found.errors["m"], ConfigError)
    assert "--temp?" in found.errors["m"].hint


@pytest.mark.real
def test_arguments_that_llama_server_takes_pass() -> None:
    """With values, negative numbers and options of two values."""
    check_options(())
    check_options(("--rope-scaling", "yarn", "--rope-scale", "4", "--predict", "-1", "--jinja"))
    check_options(("--control-vector-layer-range", "0", "1"))


@pytest.mark.real
def test_every_refused_argument_is_read_from_the_real_help() -> None:
    """One table of options: ours names none that the installed llama-server does not have."""
    binary = find_binary("llama-server")
    known = known_options(binary, build_id(binary))
    assert set(REFUSED) <= known
    assert {"-ngl", "--gpu-layers", "--spec-default", "-no-kvu"} <= known


def test_nothing_is_refused_where_no_llama_server_can_be_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The missing program is an error of its own."""
    monkeypatch.setenv("KEEPWARM_LLAMA_BIN", str(tmp_path))
    check_options(("--no-such-option",))


@pytest.mark.parametrize(
    "option", ["--cache-list", "--completion-bash", "--lookup-cache-dynamic", "--cpu-moe-draft"]
)
def test_arguments_that_would_end_the_engine_or_take_unbooked_bytes_are_refused(
    option: str,
) -> None:
    """By name, with the reason."""
    with pytest.raises(ValueError, match=f"{option} is refused"):
        parse_engine_args([option])


def test_a_quantization_in_a_files_place_is_a_mistake(problems: Problems) -> None:
    """Ollama and llama-server take it; here the file is named."""
    for written in ("owner/repo:Q4_K_M", "owner/repo@main:Q4_K_M"):
        assert "Q4_K_M is no name of a file" in problems(hf=written)["hf"]["message"]
    assert problems(hf="owner/repo:folder/M-Q4_K_M.GGUF") == {}


def test_a_variable_of_a_key_that_is_not_set_is_a_mistake(
    problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call would be refused; the key itself is in no message."""
    monkeypatch.delenv("FAR_KEY", raising=False)
    far = {"url": "http://h", "api_key_env": "FAR_KEY"}
    assert "FAR_KEY, which is not set" in problems(**far)["api_key_env"]["message"]
    monkeypatch.setenv("FAR_KEY", "sk-secret")
    assert problems(**far) == {}


def test_a_file_that_was_only_found_is_refused_with_the_command_that_trusts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config check` says it as every other command does; the report's `hint` has it, too."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    for name in ("KEEPWARM_CONFIG", "HARNESS_ENDPOINTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    far = '[models.far]\nurl = "http://far/v1"\nmodel_id = "x"\napi_key_env = "K"\n'
    (tmp_path / "keepwarm.toml").write_text(far)
    ran = CliRunner().invoke(config_group, ["check"])
    assert ran.exit_code == 2
    assert f"keepwarm config trust {tmp_path / 'keepwarm.toml'}" in ran.output
    report = json.loads(CliRunner().invoke(config_group, ["check", "--json"]).stdout)
    assert "keepwarm config trust" in report["hint"]


@pytest.mark.parametrize(
    ("begin", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (b'{"error": "Repository not found"}', "JSON"),
        (b"PK\x03\x04", "convert_hf_to_gguf.py"),
        (bytes(64), "an unfinished download"),
        (b"tjgg\3\0\0\0", "before GGUF"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(
    problems: Problems, tmp_path: Path, begin: bytes, what: str
) -> None:
    """By its first bytes, because its name says GGUF."""
    (tmp_path / "m.gguf").write_bytes(begin + bytes(64))
    assert what in problems(path="m.gguf")["path"]["message"]
