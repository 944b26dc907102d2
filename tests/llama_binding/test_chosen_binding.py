"""How the worker over llama-cpp-python is chosen: by its name, or because there is no llama-server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from backends.llama import binaries
from backends.llama.binaries import FOLDER_VARIABLE, binding_folder, engine_build, runs_by_binding
from shim import Config, InvalidRequest, KeepwarmError, Shim
from shim.cli import main as keepwarm
from shim.keeper.engines.engine_makers import engine_factory

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"max_tokens": 4, "temperature": 0.0}

pytestmark = pytest.mark.real


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment whose llama-cpp-python is a plain wheel."""
    monkeypatch.setattr(binaries, "_installed_folders", list)
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")


def over(models: dict[str, Path], **keys: object) -> Shim:
    """An inline Shim with a chat model and an embedder."""
    config = Config.from_mapping(
        {
            "budget": {"device": "host", "limit": "1GiB"},
            "models": {
                "writer": {"path": str(models["producer"]), "context": 1024, **keys},
                "reader": {"path": str(models["embedder"]), "role": "embedder", "context": 512},
            },
        }
    )
    return Shim(config, inline=True, factory=engine_factory(config))


def test_without_a_llama_server_it_is_chosen_by_itself_with_one_line(
    no_server: None, tiny_models: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The line says what is lost. Slots that the configuration asks for become one."""
    assert runs_by_binding()
    assert engine_build().startswith("0.")
    with over(tiny_models, slots=4) as shim:
        lines = [r.message for r in caplog.records if "llama-server was not found" in r.message]
        assert len(lines) == 1
        for lost in ("slots", "saved KV state", "preemption", "tools", "images", "rerankers"):
            assert lost in lines[0]
        reply = shim.chat("writer", "Say hello.", **OPTIONS)
        assert reply.usage.completion_tokens == 4
        with shim.stream("writer", "Say hello.", priority=-1, **OPTIONS) as stream:
            assert "".join(piece.content for piece in stream) == reply.content
        assert len(shim.embed("reader", "a text").vectors) == 1
        with pytest.raises(InvalidRequest, match="llama-cpp-python"):
            shim.chat("writer", "Hi.", slot=0)
        (row,) = [row for row in shim.status()["engines"] if "writer" in row["models"]]
        assert row["bytes"]["host"] > 0
        assert row["slots"] == 1


def test_by_its_name_it_runs_beside_a_llama_server(tiny_models: dict[str, Path]) -> None:
    """One model of a configuration may be run by it, and says the same as the other."""
    talk = [{"role": "user", "content": "Say hello."}]

    def answers(shim: Shim) -> list[Any]:
        reply = shim.chat("writer", talk, **OPTIONS)
        counted = [list(shim.tokenize("writer", text).tokens) for text in ("Say hello.", talk)]
        return [reply.content, reply.usage, *counted]

    with over(tiny_models, backend="llama-cpp-python") as shim:
        named = answers(shim)
    with over(tiny_models) as shim:
        assert answers(shim) == named


def test_a_configured_key_that_needs_llama_server_is_an_error_by_name(
    no_server: None, tiny_models: dict[str, Path]
) -> None:
    """Before anything is loaded."""
    with (
        over(tiny_models, engine_args=["--override-kv", "general.name=str:x"]) as shim,
        pytest.raises(KeepwarmError, match="engine_args cannot be honoured"),
    ):
        shim.chat("writer", "Hi.")


def test_a_named_folder_without_llama_server_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another program than the one that was asked for is not taken silently."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert not runs_by_binding()


def test_the_doctor_says_what_is_lost(
    no_server: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A warning, because models run."""
    (tmp_path / "keepwarm.toml").write_text("[models]\n")
    with pytest.raises(SystemExit):
        keepwarm(["--config", str(tmp_path / "keepwarm.toml"), "doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = [row for row in found["findings"] if row["check"] == "llama-server"]
    assert [row["level"] for row in rows] == ["warn"]
    assert "llama-cpp-python runs the GGUF files" in rows[0]["text"]


SCRIPT = """
import logging, sys
from shim import Shim
logging.basicConfig(level="WARNING")
model = {"path": sys.argv[1], "context": 1024}
config = {"budget": {"device": "host", "limit": "1GiB"}, "models": {"writer": model}}
with Shim(config) as shim:
    reply = shim.chat("writer", "Say hello.", max_tokens=4, temperature=0.0)
    print(reply.usage.completion_tokens, shim.status()["engines"][0]["models"])
"""


def test_an_environment_with_a_plain_wheel_answers(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """A real environment: the package without the programs beside it, and no llama-server on the PATH."""
    environment = tmp_path / "plain"
    pip = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(pip, check=True, timeout=60)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    package = binding_folder()
    assert package is not None
    (packages / "llama_cpp").symlink_to(package)
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{REPOSITORY}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"PATH": "/usr/bin:/bin", "KEEPWARM_RUNTIME_DIR": str(tmp_path / "r")}
    env.pop(FOLDER_VARIABLE, None)
    done = subprocess.run(
        [environment / "bin" / "python", "-c", SCRIPT, tiny_models["producer"]],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "4 ['writer']\n", done.stderr
    assert done.stderr.count("llama-server was not found") == 1
