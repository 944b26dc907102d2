"""The wheel is what people install: what is in it, and the demo run from it, away from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from shutil import copytree

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shim", "budget", "backends", "traces", "harness")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The standard output of a command that has to succeed."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy that holds only what git has."""
    folder = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        copytree(ROOT / package, folder / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    run(*PIP, "wheel", *offline, "-w", "out", ".", cwd=folder)
    (built,) = (folder / "out").glob("keepwarm-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an empty environment with the wheel in it.

    The dependencies, llama-cpp-python with its programs among them, are those of the environment that
    runs the tests: a path file names its folder. Path files in that folder are not followed, so the
    repository, which is installed there for editing, is out of reach.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    run(
        *PIP,
        "--python",
        folder / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_every_module_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """All modules, py.typed of each package, the licence, the entry points; no test, tool or model."""
    names = zipfile.ZipFile(wheel).namelist()
    (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    modules = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if not name.startswith(about)} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= modules
    assert {Path(name).suffix for name in modules} <= {".py", ".typed", ".json"}
    assert {f"{about}/licenses/LICENSE", f"{about}/entry_points.txt"} <= set(names)


@pytest.mark.real
def test_the_demo_runs_from_an_installed_wheel(
    installed: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """In another folder, without the repository: a missing model is made, and the pipeline runs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    where = "import importlib.util, shim; print(shim.__file__, importlib.util.find_spec('tools'))"
    found = run(installed / "python", "-c", where, cwd=tmp_path, env=env)
    assert found.startswith(str(installed.parent))
    assert found.endswith(" None\n")
    folder = tmp_path / "cache" / "keepwarm" / "demo-models"
    folder.mkdir(parents=True)
    for name, file in models.items():
        if name != "classifier":
            (folder / file.name).symlink_to(file)
    demo = (installed / "keepwarm", "demo", "--requests", "1", "--trace-dir", "traces", "--json")
    answer = json.loads(run(*demo, cwd=tmp_path, env=env))
    assert [row["model"] for row in answer["requests"]] == list(models)
    assert answer["peak_measured_bytes"] <= 1.02 * answer["limit_bytes"]
    assert Path(answer["trace"]).is_file()
    made = folder / models["classifier"].name
    assert made.read_bytes() == models["classifier"].read_bytes()
