"""The demo as people get it: the wheel, and one run of it that all tests look at.

Files of random weights stand for the models that `make models` fetches; the trained ones are real.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import pytest

from harness.demo.demo_run import DemoReport
from harness.demo.found_models import REAL
from harness.demo.models import make_models

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("shim", "budget", "backends", "traces", "harness")
N_REQUESTS = 1
STANDING_IN = {"classifier": "embedder", "embedder": "embedder", "answerer": "producer"}
"""The model of random weights that stands for each real one."""
STAGES = {
    "classify": "classifier",
    "retrieve": "embedder",
    "produce": "producer",
    "evaluate": "evaluator",
    "answer": "answerer",
}
"""Each stage's model; without an ear there is no stage that hears."""
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")

# The installed script itself runs; what it prints from is kept beside.
RUN_SCRIPT = """
import pickle, runpy, sys
from harness.demo import command

script, kept, *sys.argv[1:] = sys.argv[1:]
run_demo = command.run_demo

def run_and_keep(*args):
    report = run_demo(*args)
    with open(kept, "wb") as file:
        pickle.dump(report, file)
    return report

command.run_demo = run_and_keep
runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class Demo:
    """One run: its report, what it printed, what it said meanwhile, and its folder of models."""

    report: DemoReport
    printed: str
    said: list[str]
    models: Path


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> tuple[str, str]:
    """The standard output and errors of a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def stand_in(folder: Path, models: dict[str, Path]) -> Path:
    """Make a folder of `make models` with other models' files."""
    for name, other in STANDING_IN.items():
        place = folder / REAL[name]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(models[other])
    return folder


@pytest.fixture(scope="session")
def models() -> dict[str, Path]:
    """The file of each model by its name."""
    return make_models(REPOSITORY / "models" / "demo")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy that holds only what git has."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        copytree(REPOSITORY / package, folder / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run(*PIP, "wheel", *offline, "-w", "out", ".", cwd=folder)
    (built,) = (folder / "out").glob("keepwarm-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an empty environment with the wheel in it.

    The dependencies, llama-cpp-python with its programs among them, are those of the environment that
    runs the tests: a path file names its folder. Path files in that folder are not followed, so the
    repository, which is installed there for editing, is out of reach.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture(scope="session")
def demo(
    installed: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Demo:
    """The demo of the wheel, for a user with all models but the ear, and without cache or state."""
    home = tmp_path_factory.mktemp("demo")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {name: str(home / name) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME")}
    folder = home / "XDG_CACHE_HOME" / "keepwarm" / "demo-models"
    stand_in(folder, models)
    script = ("-c", RUN_SCRIPT, installed / "keepwarm", "report")
    options = ("--requests", str(N_REQUESTS), "--trace-dir", home / "traces", "--json")
    printed, said = run(installed / "python", *script, "demo", *options, cwd=home, env=env)
    report = pickle.loads((home / "report").read_bytes())
    return Demo(report, printed, said.splitlines(), folder)
