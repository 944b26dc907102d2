"""Folders of users: modules with the names of keepwarm's packages, plain folders, and type checkers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mypy.modulefinder import FindModuleCache, SearchPaths, get_search_dirs

import shim
from shim.lazy_names import check_packages

PACKAGES = ("shim", "budget", "backends", "traces", "harness")
PROGRAM = """
from shim import chat, Reply

reply: Reply = chat("m", "Hi.")
reveal_type(chat)
reply.contents
"""


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """This environment's Python in a folder, as a user of that folder starts it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", [("-c", "import shim"), ("-m", "shim.cli", "--version")])
@pytest.mark.parametrize("file", ["budget.py", "traces/__init__.py"])
def test_a_module_of_the_user_in_the_place_of_a_package_is_named(
    tmp_path: Path, file: str, arguments: tuple[str, ...]
) -> None:
    """It is not run, and the error says which file is to be renamed."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("print('the module of the user runs')\n")
    done = python(tmp_path, *arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "ImportError: keepwarm needs its own package" in done.stderr
    assert str((tmp_path / file).parent if "/" in file else tmp_path / file) in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("-c", "import shim, traces, harness; print(shim.Shim)"), ("-m", "shim.cli", "--help")],
)
def test_plain_folders_with_the_names_of_packages_shadow_nothing(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """`traces` full of traces, and the folders of other programs."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
    done = python(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "Shim" in done.stdout or "keepwarm" in done.stdout


def test_a_harness_of_the_user_is_in_the_way_of_the_demo_alone(tmp_path: Path) -> None:
    """`shim` does not need keepwarm's; the demo names the file."""
    (tmp_path / "harness.py").touch()
    assert python(tmp_path, "-c", "import shim, harness; shim.Shim").returncode == 0
    done = python(tmp_path, "-m", "shim.cli", "demo")
    assert done.returncode != 0
    assert str(tmp_path / "harness.py") in done.stderr


def test_a_module_that_was_imported_before_is_found_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's `budget` that is imported first is what `import budget` gives from then on."""
    (tmp_path / "own_budget.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "budget", __import__("own_budget"))
    with pytest.raises(ImportError, match=r"own_budget\.py") as caught:
        check_packages("traces", "budget")
    assert caught.value.name == "budget"
    monkeypatch.delitem(sys.modules, "budget")
    check_packages(*PACKAGES)


def test_type_checkers_find_every_package_outside_of_the_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the environment's path alone, and with types: each has a `py.typed`."""
    monkeypatch.chdir(tmp_path)
    sys_path, site_packages = get_search_dirs(sys.executable)
    searched = SearchPaths((), (), (*sys_path, *site_packages), ())
    finder = FindModuleCache(searched, None, None)
    found = {name: finder.find_module(name) for name in PACKAGES}
    assert {name: Path(str(file)).name for name, file in found.items()} == dict.fromkeys(
        PACKAGES, "__init__.py"
    )


@pytest.mark.full
def test_mypy_sees_the_types_in_a_folder_of_the_user(tmp_path: Path) -> None:
    """`chat` has its signature there, and a wrong attribute of a reply is found."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = python(tmp_path, "-m", "mypy", "--strict", "program.py")
    assert "messages: typing.Sequence[typing.Mapping[str, Any]] | str" in done.stdout
    assert '"Reply" has no attribute "contents"' in done.stdout
    assert "import-untyped" not in done.stdout


def test_dir_shows_the_api_and_the_version_is_that_of_the_package() -> None:
    """What an interactive user sees: all public names, although they are imported when they are used."""
    assert set(shim.__all__) == set(dir(shim))
    assert all(hasattr(shim, name) for name in dir(shim))
    assert shim.__version__[0].isdigit()
