"""What lies in the place of a trace or of `runs.jsonl`, and is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim.cli.root import main
from traces import RunLine, RunTrace, read_runs
from traces.processes.shared_run import RunFacts

COMMANDS = (["list"], ["summary"], ["prune", "--keep", "1"])


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_place_of_a_file_is_a_typed_error_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """As a trace, and as the list of runs, which a run reports as its problem."""
    make(tmp_path / "x.json")
    make(tmp_path / "runs.jsonl")
    for words in (*COMMANDS, ["summary", str(tmp_path / "x.json")]):
        said = CliRunner().invoke(main, ["trace", *words, "--folder", str(tmp_path)])
        assert said.exit_code == 4, said.output
    with RunTrace("r", tmp_path) as run:
        pass
    assert len(run.problems) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seconds", "a"),
        ("seconds", float("nan")),
        ("trace", [1]),
        ("trace", "a\0b"),
        ("service", "\ud800"),
    ],
)
def test_a_runs_line_with_a_value_of_another_kind_is_a_damaged_line(
    tmp_path: Path, key: str, value: object
) -> None:
    """It is named and passed over by every command."""
    line = asdict(RunLine("r", "s", "2026-11-21T13:45:01+00:00", 1.0, "ok"))
    (tmp_path / "runs.jsonl").write_text(json.dumps({**line, key: value}) + "\n")
    (found,) = read_runs(tmp_path / "runs.jsonl")
    assert isinstance(found, ValueError)
    for words, code in zip(COMMANDS, (0, 2, 0), strict=True):
        said = CliRunner().invoke(main, ["trace", *words, "--folder", str(tmp_path)])
        assert said.exit_code == code, said.output


def test_a_file_of_other_values_where_a_run_says_what_it_is_ends_no_list(tmp_path: Path) -> None:
    """It lies beside a trace without a line."""
    (tmp_path / "x.trace.json").write_text("[\n]\n")
    facts = {field.name: 5 for field in fields(RunFacts)}
    (tmp_path / "x.open").write_text(json.dumps(facts))
    said = CliRunner().invoke(main, ["trace", "list", "--folder", str(tmp_path), "--json"])
    assert said.exit_code == 0, said.output
    assert [run["service"] for run in json.loads(said.stdout)["runs"]] == ["5"]


@pytest.mark.parametrize("gzip", [False, True])
def test_a_trace_that_is_removed_during_its_run_is_said_and_leaves_nothing(
    tmp_path: Path, gzip: bool
) -> None:
    """The run's line named a trace that was nowhere, and no problem."""
    with RunTrace("r", tmp_path, gzip=gzip) as run, run.span("piece"):
        assert run.trace_path is not None
        run.trace_path.unlink()
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    assert "removed during the run" in "".join(line.problems)
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]


def test_a_trace_that_cannot_be_packed_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of its packed form stayed beside it."""

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with RunTrace("r", tmp_path, gzip=True) as run:
        pass
    assert run.trace_path is not None
    assert {file.name for file in tmp_path.iterdir()} == {"runs.jsonl", run.trace_path.name}
    assert "No space left" in "".join(run.problems)
