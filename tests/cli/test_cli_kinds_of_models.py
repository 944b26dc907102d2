"""The commands about models say what every kind of model is: none of them needs a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from budget.errors import LoadFailed, WorkerError
from shim.cli.console.failure import tell
from shim.cli.root import main

CONFIG = """
[models.code]
factory = "espeak"
[models.web]
command = ["serve", "--port", "{port}"]
[models.folder]
path = "hf"
backend = "vllm"
[models.many]
endpoints = [{ url = "http://127.0.0.1:9" }, { url = "http://127.0.0.1:10" }]
[models.far]
url = "http://127.0.0.1:9"
backend = "ollama"
"""


@pytest.fixture
def config(tmp_path: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of every kind beside GGUF files, and no keeper."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("KEEPWARM_RUNTIME_DIR", str(runtime_dir))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"architectures": ["TinyForCausalLM"]}))
    (tmp_path / "hf" / "model.safetensors").write_bytes(bytes(64))
    file = tmp_path / "keepwarm.toml"
    file.write_text(CONFIG)
    return file


def test_list_and_show_know_every_kind(config: Path) -> None:
    """Each has its source; a model folder has its weights' bytes."""

    def run(*words: str) -> str:
        ran = CliRunner().invoke(main, ["--config", str(config), *words])
        assert ran.exit_code == 0, ran.output
        return ran.stdout

    rows = {row["model"]: row for row in json.loads(run("list", "--json"))["models"]}
    assert rows["web"]["command"] == ["serve", "--port", "{port}"]
    assert (rows["folder"]["problem"], rows["folder"]["file_bytes"]) == (None, 64)
    assert "serve --port" in run("list")
    assert "serve --port" in run("show", "web")
    assert "TinyForCausalLM" in run("show", "folder")
    for name in ("code", "many", "far"):
        assert name in run("show", name)


def test_config_check_looks_into_a_model_folder_and_shows_commands(config: Path) -> None:
    """The folder is no missing file; without weights it is a mistake, by its key."""
    asked = ["config", "check", "--config", str(config)]
    found = CliRunner().invoke(main, asked)
    assert found.exit_code == 0, found.output
    assert "serve --port" in found.stdout
    assert "None" not in found.stdout
    (config.parent / "hf" / "model.safetensors").unlink()
    found = CliRunner().invoke(main, asked)
    assert (found.exit_code, "holds no weights" in found.stdout) == (2, True)


def test_a_traceback_is_printed_and_quoted_log_lines_are_not_repeated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a hint refers to is there for a reader of a terminal as well."""
    ctx = click.Context(click.Command("call"))
    tell(ctx, WorkerError("m raised KeyError: x", traceback="Traceback:\n  at line 3\nKeyError: x"))
    assert "    at line 3" in capsys.readouterr().err
    quoted = LoadFailed("m exited.\n  | no file", hint="Look.", log_tail=["no file"])
    tell(ctx, quoted)
    assert capsys.readouterr().err.count("no file") == 1
    assert str(quoted).endswith("| no file\nLook.")
