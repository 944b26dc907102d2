"""What lies in the place of a trace or of `runs.jsonl`, and is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim.cli.root import main
from traces import RunLine, RunTrace, read_runs

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
