"""The list of runs while another process holds it, and what a failure in its middle leaves."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim.cli import main
from tests.traces.support import now, request
from traces import RunLine, RunTrace, append_run, read_runs, runs
from traces.runs import drop_runs


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A list with one run, of which there is a trace."""
    with RunTrace("r", tmp_path) as run:
        run.request(request("q", now()))
    return tmp_path / "runs.jsonl"


def test_a_list_that_a_stopped_process_keeps_locked_is_a_typed_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run says it as its problem and keeps its trace; a command says it and ends."""
    monkeypatch.setattr(runs, "LOCK_SECONDS", 0.01)
    descriptor = os.open(file, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(TimeoutError, match="another process has kept it locked"):
            append_run(file, RunLine("x", "s", "", 1.0, "ok"))
        with RunTrace("r2", file.parent) as run:
            pass
        said = CliRunner().invoke(
            main, ["trace", "prune", "--keep", "0", "--folder", str(file.parent)]
        )
    finally:
        os.close(descriptor)
    assert ["kept it locked" in problem for problem in run.problems] == [True]
    assert run.trace_path is not None
    assert run.trace_path.exists()
    assert (said.exit_code, "kept it locked" in said.stderr) == (4, True)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_list_is_written_without_a_lock_only_where_there_are_none(
    file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Any error of a lock passed for a file system without locks, and two processes wrote at once."""

    def flock(_fd: int, _how: int) -> None:
        raise OSError(code, os.strerror(code))

    before = file.read_bytes()
    monkeypatch.setattr(fcntl, "flock", flock)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            append_run(file, RunLine("x", "s", "", 1.0, "ok"))
        assert file.read_bytes() == before
    else:
        append_run(file, RunLine("x", "s", "", 1.0, "ok"))
        assert file.read_bytes().startswith(before)
        assert len(list(read_runs(file))) == 2


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_a_list_that_cannot_be_written_anew_stays_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """No half of a list is left beside it, not even by Ctrl-C; one that a kill left is no hindrance."""
    part = file.with_name("runs.jsonl.part")
    part.write_text("left by a kill")
    before = file.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if failing == "write":
            patch.setattr(runs, "_parse", interrupted)
        else:
            patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            drop_runs(file, {str(file.parent / "r.trace.json")})
    assert (file.read_bytes(), part.exists()) == (before, False)
    assert drop_runs(file, {str(file.parent / "r.trace.json")}) == 1
    assert list(read_runs(file)) == []
