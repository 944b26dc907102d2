"""The wheel is what people install: what is in it, and the demo run from it, away from the repository."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from tests.demo.conftest import PACKAGES, REPOSITORY, Demo, run

pytestmark = pytest.mark.timeout(600)
"""A demo makes models and measures them: on a busy machine that alone takes minutes."""


def test_the_wheel_holds_every_module_of_the_packages_and_nothing_else(wheel: Path) -> None:
    """All modules, py.typed of each package, the licence, the entry points; no model but trained ones."""
    names = zipfile.ZipFile(wheel).namelist()
    (about,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    modules = {
        str(file.relative_to(REPOSITORY))
        for package in PACKAGES
        for file in (REPOSITORY / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if not name.startswith(about)} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= modules
    assert {Path(name).suffix for name in modules} <= {".py", ".typed", ".json", ".gguf", ".md"}
    assert {f"{about}/licenses/LICENSE", f"{about}/entry_points.txt"} <= set(names)


def test_an_installed_wheel_needs_no_repository(installed: Path, tmp_path: Path) -> None:
    """What the runs below import lies beside the installed script."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    where = "import importlib.util, shim; print(shim.__file__, importlib.util.find_spec('tools'))"
    found, _ = run(installed / "python", "-c", where, cwd=tmp_path, env=env)
    assert found.startswith(str(installed.parent))
    assert found.endswith(" None\n")


@pytest.mark.real
def test_the_demo_runs_from_an_installed_wheel(demo: Demo, models: dict[str, Path]) -> None:
    """In another folder, without the repository: a missing model is made, and the pipeline runs."""
    answer = json.loads(demo.printed)
    assert [row["model"] for row in answer["requests"]] == list(models)
    assert answer["peak_measured_bytes"] <= 1.02 * answer["limit_bytes"]
    assert Path(answer["trace"]).is_file()
    made = demo.models / models["classifier"].name
    assert not made.is_symlink()
    assert made.read_bytes() == models["classifier"].read_bytes()
