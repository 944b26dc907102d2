"""Several processes of one run end up in its one file, whichever way they begin and end."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim.cli import main
from tests.perfetto import assert_sound
from tests.traces.support import MS, events, load, now, request, written
from tests.traces.working import die, work
from traces import RunLine, RunTrace, current_run, read_runs
from traces.processes.late_parts import add_late_parts
from traces.processes.part_file import PartFile
from traces.processes.part_of_run import PartOfRun
from traces.processes.shared_run import VARIABLE
from traces.recording.broken_sinks import Problems


def leftover(folder: Path) -> list[str]:
    """What lies in the folder beside traces and their lines."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not name.endswith((".trace.json", "runs.jsonl"))]


def groups(path: Path) -> list[str]:
    """The groups of lanes of a trace, in the order of their first use."""
    return [one["args"]["name"] for one in events(path) if one["name"] == "process_name"]


def line_of(trace: RunTrace) -> RunLine:
    """The run's line."""
    (line,) = read_runs(trace.runs_path)
    assert isinstance(line, RunLine)
    return line


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_the_workers_of_a_pool_are_in_the_file_of_their_run(tmp_path: Path, way: str) -> None:
    """Each process has lanes of its own for its spans, and all share those of the engine."""
    with RunTrace("pool", tmp_path, service="harness") as trace:
        trace.request(request("own", now() - 70 * MS))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(way)) as pool:
            pids = list(pool.map(work, range(6)))
    assert trace.problems == []
    assert trace.trace_path is not None
    assert_sound(trace.trace_path)
    found = written(trace.trace_path)
    assert (found["request"], found["piece"], found["model_load m"]) == (7, 6, 1)
    asked = {one.request_id for one in line_of(trace).requests}
    assert asked == {"own", *(f"{pid}-{number}" for number, pid in enumerate(pids))}
    assert {f"1 process {pid} of harness" for pid in pids} <= set(groups(trace.trace_path))
    assert len(groups(trace.trace_path)) == 3 + len(set(pids))
    assert leftover(tmp_path) == []
    assert VARIABLE not in os.environ


def test_a_killed_worker_leaves_what_it_had_written(tmp_path: Path) -> None:
    """Its part is taken in without it, its open span is missing, and other workers are not disturbed."""
    with RunTrace("killed", tmp_path, service="harness") as trace:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(1, mp_context=context) as pool, pytest.raises(BrokenProcessPool):
            pool.submit(die, 1).result()
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(work, 2).result()
    assert trace.problems == []
    assert trace.trace_path is not None
    assert_sound(trace.trace_path)
    found = written(trace.trace_path)
    assert (found["request"], found["piece"], found["lost"]) == (3, 2, 0)
    assert leftover(tmp_path) == []


def test_a_program_that_a_run_starts_is_in_its_file(tmp_path: Path) -> None:
    """The environment names the run; a program that opens a run of its own has a file of its own."""
    program = [sys.executable, "-m", "tests.traces.working"]
    with RunTrace("starts", tmp_path) as trace:
        subprocess.run(program, check=True, timeout=60)
    subprocess.run(program, timeout=60, check=False, capture_output=True)
    assert trace.trace_path is not None
    assert written(trace.trace_path)["piece"] == 1
    assert len(line_of(trace).requests) == 1


def test_a_forked_child_records_as_its_parent_does_and_ends_no_span_of_it(tmp_path: Path) -> None:
    """The run's own object goes on in the child, below the span that is open; leaving it closes nothing."""
    with RunTrace("forked", tmp_path) as trace, trace.span("outer"):
        child = os.fork()
        if child == 0:
            with trace.span("inner"):
                trace.request(request("child", now() - 70 * MS))
            trace.__exit__(None, None, None)
            os._exit(0 if not trace.active and current_run() is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        trace.request(request("parent", now() - 70 * MS))
    assert sorted(each.request_id for each in line_of(trace).requests) == ["child", "parent"]
    assert trace.trace_path is not None
    found = written(trace.trace_path)
    assert (found["outer"], found["inner"], found["run"]) == (1, 1, 1)


def test_a_run_that_is_only_for_its_own_context_is_not_for_children(tmp_path: Path) -> None:
    """A server that traces some requests traces no process that it starts meanwhile."""
    with RunTrace("own", tmp_path, process_wide=False) as trace:
        assert VARIABLE not in os.environ
        child = os.fork()
        if child == 0:
            os._exit(0 if current_run() is None and not trace.active else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert leftover(tmp_path) == []


def fork_that_waits(trace: RunTrace) -> tuple[int, int]:
    """A child that records once it is told to; its process, and where it is told."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.read(told, 1)
        work(1)
        trace.flush()
        os._exit(0 if current_run() is None else 1)
    os.close(told)
    return child, tell


@pytest.mark.parametrize("packed", [False, True])
def test_what_a_child_writes_after_the_run_is_added_when_the_trace_is_looked_at(
    tmp_path: Path, *, packed: bool
) -> None:
    """Nothing waits for such a child. It finds that the run is over, and records no more after that."""
    with RunTrace("late", tmp_path, gzip=packed) as trace:
        trace.request(request("own", now() - 70 * MS))
        trace.load(load("shared", now() - 100 * MS))
        child, tell = fork_that_waits(trace)
    os.write(tell, b"x")
    os.close(tell)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert leftover_parts(tmp_path) == [f"late.{child}.part"]
    told = CliRunner().invoke(main, ["trace", "summary", "--folder", str(tmp_path), "--json"])
    assert "1 part of other processes of its run added" in told.stderr
    model = json.loads(told.stdout)["models"]["m"]
    assert (model["requests"], model["loads"]) == (2, 1)
    assert trace.trace_path is not None
    assert_sound(trace.trace_path)
    assert leftover_parts(tmp_path) == []


def leftover_parts(folder: Path) -> list[str]:
    """The parts in a folder."""
    return sorted(path.name for path in folder.glob("*.part"))


KILLED = """
import os, signal, sys
from tests.traces.working import work
from traces import RunTrace
run = RunTrace("killed", sys.argv[1]).__enter__()
if sys.argv[2] == "cut":
    work(2)
    run.flush()
    with open(run.trace_path, "ab") as file:
        file.write(b',\\n{"ph":"X","na')
child = os.fork()
if child == 0:
    work(1)
    run.flush()
    os._exit(0)
os.waitpid(child, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("state", "pieces"), [("empty", 1), ("cut", 2)])
def test_the_parts_of_a_run_that_was_killed_are_added_to_its_file(
    tmp_path: Path, state: str, pieces: int
) -> None:
    """The file of the killed process may be empty or cut; it is a whole list afterwards."""
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, state], timeout=60, check=False)
    trace = tmp_path / "killed.trace.json"
    assert add_late_parts(trace) == (1, [])
    assert_sound(trace)
    found = written(trace)
    assert (found["piece"], found["request"], found["model_load m"]) == (pieces, pieces, 1)
    assert len({one["pid"] for one in events(trace)}) == len(groups(trace))
    assert leftover(tmp_path) == []
    assert add_late_parts(trace) == (0, [])


OF_ANOTHER_VERSION = (
    '{"kind":"part","version":1,"pid":9,"service":"s","stem":"r","offset_ns":0,"base_ns":0}\n'
    '{"kind":"own","at":5,"parent":0,"fields":{"name":"n","times_ns":[1,5]}}\n'
)


@pytest.mark.parametrize("content", ["", "[1]\n", '{"pid":"x"}\n', OF_ANOTHER_VERSION])
def test_a_part_that_begins_as_none_of_this_version_is_left_and_hinders_no_other(
    tmp_path: Path, content: str
) -> None:
    """Its spans were lost with it, and an empty one kept all others out; it counted as added."""
    with RunTrace("r", tmp_path) as run:
        assert run._shared is not None
        part = PartOfRun(run._shared, Problems("r"))
    assert run.trace_path is not None
    odd = tmp_path / "r.0.part"
    odd.write_text(content)
    with pytest.raises(ValueError, match="this version of keepwarm"):
        add_late_parts(run.trace_path)
    part.recorder.record(load("late", now()), 0)
    part.flush()
    part.close()
    count, (problem,) = add_late_parts(run.trace_path)
    assert (count, odd.name in problem) == (1, True)
    assert leftover_parts(tmp_path) == [odd.name]
    assert written(run.trace_path)["model_load m"] == 1


def test_a_line_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    """The rest of its part is recorded."""
    with RunTrace("r", tmp_path) as run:
        assert run._shared is not None
        part = PartOfRun(run._shared, Problems("r"))
        part.recorder._lines.append('{"kind":"song","at":1,"parent":0,"fields":{}}')
        part.recorder.record(load("l", now()), 0)
        part.flush()
        part.close()
    assert run.trace_path is not None
    assert "unknown kind, 'song'" in run.problems[0]
    assert written(run.trace_path)["model_load m"] == 1


def test_a_part_that_the_run_takes_in_before_its_first_line_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run removes what it has taken in, also between the making of a part and its first record."""
    begun = PartFile._begun

    def taken_at_once(file: PartFile) -> int:
        monkeypatch.undo()
        descriptor = begun(file)
        run._files.take_in(last=False)
        return descriptor

    with RunTrace("r", tmp_path) as run:
        assert run._shared is not None
        part = PartOfRun(run._shared, Problems("r"))
        monkeypatch.setattr(PartFile, "_begun", taken_at_once)
        part.recorder.record(load("l", now()), 0)
        part.flush()
        part.close()
    assert run.trace_path is not None
    assert written(run.trace_path)["model_load m"] == 1


def test_a_full_disk_leaves_late_parts_and_the_trace_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are added when there is room again."""
    with RunTrace("full", tmp_path) as trace:
        child, tell = fork_that_waits(trace)
    os.close(tell)
    os.waitpid(child, 0)
    assert trace.trace_path is not None
    before, parts = trace.trace_path.read_bytes(), leftover_parts(tmp_path)
    real, writes = os.write, iter(range(100))

    def write(descriptor: int, data: bytes) -> int:
        if next(writes) == 0:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="full"):
        add_late_parts(trace.trace_path)
    monkeypatch.undo()
    assert (trace.trace_path.read_bytes(), leftover_parts(tmp_path)) == (before, parts)
    assert add_late_parts(trace.trace_path) == (1, [])
    assert written(trace.trace_path)["piece"] == 1


def test_runs_that_end_in_another_order_than_they_began_leave_no_name_behind(
    tmp_path: Path,
) -> None:
    """Runs of two threads: a child that is started later finds neither."""
    first, second = (RunTrace(name, tmp_path).__enter__() for name in ("a", "b"))
    first.__exit__(None, None, None)
    assert os.environ["KEEPWARM_TRACE_RUN"] == str(tmp_path / "b.open")
    second.__exit__(None, None, None)
    assert "KEEPWARM_TRACE_RUN" not in os.environ
