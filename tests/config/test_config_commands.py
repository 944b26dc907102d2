"""`keepwarm config` and the page that documents its keys."""

import json
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from backends.gguf import read_header
from budget.errors import BadModelFile, ConfigError
from budget.eviction.policies import POLICY_NAMES
from shim.cli.commands.config.command import config_group
from shim.config import BudgetSection, ModelEntry, json_schema, markdown_reference
from shim.config.schema.document import SECTIONS, Config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """A runner in an empty folder and an empty environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("KEEPWARM_CONFIG", "HARNESS_ENDPOINTS", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "unknown"))
    return CliRunner()


def test_the_page_documents_every_key_as_the_code_has_it() -> None:
    """The tables of the documentation are those the schema makes (config schema --format markdown)."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page.endswith(markdown_reference())
    for key in ModelEntry.model_fields:
        assert f"| `{key}` |" in page


def test_the_schema_has_every_key_with_a_description_and_refuses_others() -> None:
    """Editors can complete and check every key."""
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {*SECTIONS, "models"}
    for definition in schema["$defs"].values():
        assert definition["additionalProperties"] is False
        assert all(p["description"] and p["x-allowed"] for p in definition["properties"].values())
    assert set(schema["$defs"]["ModelEntry"]["properties"]) == set(ModelEntry.model_fields)


def test_the_policies_allowed_are_those_there_are() -> None:
    """A policy that is added to the core can be configured, and no other."""
    assert tuple(get_args(BudgetSection.model_fields["policy"].annotation)) == POLICY_NAMES


def test_schema_command_prints_the_schema(runner: CliRunner) -> None:
    """As JSON, and as the documentation's tables."""
    assert json.loads(runner.invoke(config_group, ["schema"]).output) == json_schema()
    markdown = runner.invoke(config_group, ["schema", "--format", "markdown"])
    assert markdown.output == markdown_reference()


def test_check_reports_a_good_file(
    runner: CliRunner, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    """Status 0, the models, and no problems."""
    (tmp_path / "m.gguf").symlink_to(tiny_models["evaluator"])
    (tmp_path / "keepwarm.toml").write_text('[models.m]\npath = "m.gguf"\nrole = "evaluator"\n')
    result = runner.invoke(config_group, ["check", "--json"])
    report = json.loads(result.output)
    assert result.exit_code == 0
    assert report["ok"]
    assert report["problems"] == []
    assert report["models"][0]["name"] == "m"
    assert report["models"][0]["pinned"] is True
    assert "no mistakes" in runner.invoke(config_group, ["check"]).output


def test_check_lists_mistakes_and_missing_files(runner: CliRunner, tmp_path: Path) -> None:
    """Status 2; people and programs get key, line and what is allowed."""
    file = tmp_path / "keepwarm.toml"
    file.write_text('[models.m]\npath = "m.gguf"\nslots = 0\n')
    result = runner.invoke(config_group, ["check", "--json"])
    assert result.exit_code == 2
    assert json.loads(result.output)["problems"][0]["key"] == "models.m.slots"
    file.write_text('[models.m]\npath = "m.gguf"\n')
    missing = runner.invoke(config_group, ["check", "--json"])
    problem = json.loads(missing.output)["problems"][0]
    assert missing.exit_code == 2
    assert (problem["key"], problem["line"]) == ("models.m.path", 2)
    human = runner.invoke(config_group, ["check"])
    assert "which is not there" in human.output
    assert "1 mistake" in human.output


def test_a_folder_in_a_model_files_place_is_called_one_with_the_file_to_name(
    runner: CliRunner, tmp_path: Path
) -> None:
    """It was called not there by one command, and no regular file by another."""
    (tmp_path / "models").mkdir()
    for name in "dcba":
        (tmp_path / "models" / f"{name}.gguf").touch()
    (tmp_path / "empty").mkdir()
    named, none = "a.gguf, b.gguf, c.gguf, ...", "this folder has none"
    file = tmp_path / "keepwarm.toml"
    file.write_text('[models.m]\npath = "models"\n[models.n]\npath = "empty"\n')
    shown = runner.invoke(config_group, ["check"]).output
    assert shown.count("which is a folder") == 2
    assert named in shown
    assert none in shown
    for folder, found in (("models", named), ("empty", none)):
        with pytest.raises(BadModelFile, match="is a folder") as error:
            read_header(tmp_path / folder)
        assert found in error.value.hint


def test_check_reports_what_is_no_toml(runner: CliRunner, tmp_path: Path) -> None:
    """A file that cannot be read at all is one problem with a message."""
    (tmp_path / "keepwarm.toml").write_text("[")
    report = json.loads(runner.invoke(config_group, ["check", "--json"]).output)
    assert not report["ok"]
    assert "not TOML" in report["problems"][0]["message"]


def test_show_has_value_and_origin_of_every_key_and_no_secret(
    runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values come with the file and line, or the variable, or `default`; keys of endpoints do not."""
    monkeypatch.setenv("FAR_KEY", "sk-very-secret")
    endpoints = {"far": {"url": "http://h", "api_key_env": "FAR_KEY"}}
    monkeypatch.setenv("HARNESS_ENDPOINTS", json.dumps(endpoints))
    (tmp_path / "keepwarm.toml").write_text('[models.m]\npath = "m.gguf"\n')
    result = runner.invoke(config_group, ["show", "--json"])
    keys = json.loads(result.output)["keys"]
    assert keys["models.m.path"]["origin"].endswith("keepwarm.toml:2")
    assert keys["models.m.context"] == {"value": 4096, "origin": "default"}
    assert keys["models.far.url"] == {"value": "http://h", "origin": "HARNESS_ENDPOINTS"}
    assert keys["budget.limit"] == {"value": "90%", "origin": "default"}
    assert "models.far.context" not in keys
    assert "sk-very-secret" not in result.output
    assert "models.m.path" in runner.invoke(config_group, ["show"]).output


def test_show_of_a_bad_file_raises_the_error_that_lists_its_mistakes(
    runner: CliRunner, tmp_path: Path
) -> None:
    """The command line around it prints the error; nothing is shown as if it were in effect."""
    (tmp_path / "keepwarm.toml").write_text("x = 1\n")
    result = runner.invoke(config_group, ["show"])
    assert isinstance(result.exception, ConfigError)


def test_path_says_which_file_is_in_effect(runner: CliRunner, tmp_path: Path) -> None:
    """Status 2 and a sentence when there is none."""
    none = runner.invoke(config_group, ["path"])
    assert none.exit_code == 2
    assert "no configuration file" in none.output
    (tmp_path / "keepwarm.toml").write_text("")
    found = runner.invoke(config_group, ["path", "--json"])
    assert json.loads(found.output) == {"file": str(tmp_path / "keepwarm.toml")}


def test_defaults_alone_are_a_whole_configuration() -> None:
    """Every key has a default, so that no file is needed."""
    assert Config.from_mapping({}) == Config()
