"""`keepwarm trace prune`: what goes, and what stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim.cli.root import main
from tests.traces.support import now, request
from traces import RunLine, RunTrace, append_run, read_runs
from traces.pruning import UNFINISHED_S, TracesKept, prune, to_prune

DAY = 86_400.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs, the first four days old and the last of today, each with its line."""
    for age in (4, 3, 2, 1):
        with RunTrace(f"run-{age}", tmp_path, gzip=age == 3) as run:
            run.request(request("r", now()))
        assert run.trace_path is not None
        at = time.time() - (age - 0.5) * DAY
        os.utime(run.trace_path, (at, at))
    return tmp_path


def _gone(folder: Path, kept: TracesKept) -> list[str]:
    return [one.path.name.split(".")[0] for one in to_prune(folder, kept, time.time())]


def test_old_many_and_large_traces_go_the_oldest_first(folder: Path) -> None:
    """Each limit by itself; together what any of them asks for."""
    one = (folder / "run-1.trace.json").stat().st_size
    assert _gone(folder, TracesKept(runs=3)) == ["run-4"]
    assert _gone(folder, TracesKept(age_s=2 * DAY)) == ["run-3", "run-4"]
    assert _gone(folder, TracesKept(n_bytes=one)) == ["run-2", "run-3", "run-4"]
    assert _gone(folder, TracesKept(runs=3, age_s=2 * DAY)) == ["run-3", "run-4"]
    assert _gone(folder, TracesKept(runs=4, age_s=9 * DAY, n_bytes=10**9)) == []


def test_lines_go_with_their_traces_and_others_stay(folder: Path) -> None:
    """Damaged lines are not ours to judge, and a run that ends meanwhile is there."""
    lines = folder / "runs.jsonl"
    with lines.open("a") as file:
        file.write("damaged\n")
    prune(folder, to_prune(folder, TracesKept(runs=1), time.time()))
    append_run(lines, RunLine("next", "s", "", 1.0, "ok"))
    assert [getattr(line, "run_id", "damaged") for line in read_runs(lines)] == [
        "run-1",
        "damaged",
        "next",
    ]
    assert [path.name for path in folder.glob("*.json")] == ["run-1.trace.json"]
    assert lines.stat().st_mode & 0o777 == 0o600


def test_a_trace_that_is_still_written_stays(folder: Path) -> None:
    """A file without a line goes a day after it was written to last; a link and other files never."""
    (folder / "runs.jsonl").unlink()
    (folder / "link.trace.json").symlink_to(folder / "run-1.trace.json")
    (folder / "notes.json").write_text("mine")
    assert UNFINISHED_S == DAY
    assert _gone(folder, TracesKept(runs=0)) == ["run-2", "run-3", "run-4"]


def test_a_trace_that_is_removed_meanwhile_does_not_end_a_pruning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another prune, or by the end of a run that packs it."""
    lstat = Path.lstat

    def removed(path: Path) -> os.stat_result:
        if path.name == "run-4.trace.json":
            path.unlink()
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", removed)
    assert _gone(folder, TracesKept(runs=2)) == ["run-3"]


def test_a_run_that_was_killed_goes_as_any_other_and_an_open_one_never(tmp_path: Path) -> None:
    """Its lock tells one from the other: killed services would fill the disk for a day."""
    killed = tmp_path / "killed.trace.json"
    for path in (killed, tmp_path / "killed-2.trace.json", tmp_path / "killed.open"):
        path.write_text("[\n")
    with RunTrace("open", tmp_path) as run:
        run.flush()
        trace = run.trace_path
        assert trace is not None
        old = time.time() - 3 * DAY
        os.utime(trace, (old, old))
        assert sorted(_gone(tmp_path, TracesKept(runs=0))) == ["killed", "killed-2"]
        prune(tmp_path, to_prune(tmp_path, TracesKept(runs=0), time.time()))
        assert {one.name for one in tmp_path.iterdir()} == {trace.name, "open.open"}


def test_the_command_says_what_went_and_needs_a_limit(folder: Path) -> None:
    """`--dry-run` removes nothing; without any limit it is refused."""
    ask = ["trace", "prune", "--folder", str(folder)]
    told = json.loads(CliRunner().invoke(main, [*ask, "--keep", "2", "--dry-run", "--json"]).stdout)
    assert [Path(path).name for path in told["removed"]] == [
        "run-3.trace.json.gz",
        "run-4.trace.json",
    ]
    assert len(list(folder.glob("*.trace.json*"))) == 4
    assert "2 traces" in CliRunner().invoke(main, [*ask, "--max-age", "2d"]).stdout
    assert len(list(folder.glob("*.trace.json*"))) == 2
    assert CliRunner().invoke(main, ask).exit_code != 0
    assert CliRunner().invoke(main, [*ask, "--max-bytes", "many"]).exit_code != 0
