"""What a run leaves to its own thread, keeps in memory, leaves out by choice, and splits into files."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.perfetto import PROBLEMS, query
from tests.traces.support import MS, evict, load, now, request, written
from traces import RequestRecord, RunLine, RunTrace, read_runs


def _lines(folder: Path) -> list[RunLine]:
    return [line for line in read_runs(folder / "runs.jsonl") if isinstance(line, RunLine)]


def test_spans_are_built_in_the_runs_own_thread(tmp_path: Path) -> None:
    """A caller leaves what its record is made of; making it, and writing it, is no work of its thread."""
    built = threading.Event()
    threads: list[str] = []

    def build() -> Iterator[RequestRecord]:
        threads.append(threading.current_thread().name)
        built.set()
        yield request("r1", now())

    with RunTrace("later", tmp_path) as run:
        run.records(build)
        assert built.wait(30)
    assert threads == ["keepwarm-trace-later"]
    assert [one.request_id for one in _lines(tmp_path)[0].requests] == ["r1"]


def test_a_finished_request_leaves_nothing_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of days must not grow: four times the requests, with loads and arrows, and no more bytes."""
    monkeypatch.setattr("traces.recording.request_lines.IN_MEMORY_BYTES", 10_000)
    monkeypatch.setattr("traces.chrome.lanes._KEEP", 64)
    for name in (
        "traces.recording.remembered.REMEMBERED",
        "traces.chrome.arrows.REMEMBERED",
    ):
        monkeypatch.setattr(name, 64)
    with RunTrace("days", tmp_path) as run:
        start = now()

        def serve(numbers: range) -> int:
            for number in numbers:
                at = start + number * 100 * MS
                run.load(load(f"l{number}", at, ms=5))
                run.evict(evict(f"e{number}", at + 6 * MS))
                run.request(request(f"r{number}", at, waited_for_load=f"l{number}"))
                run.request(request(f"s{number}", at, waited_for_load="never reported"))
                if number % 50 == 0:
                    run.flush()
            run.flush()
            return tracemalloc.get_traced_memory()[0]

        serve(range(300))
        tracemalloc.start()
        try:
            after_few = serve(range(300, 500))
            after_many = serve(range(500, 1300))
        finally:
            tracemalloc.stop()
    assert run.problems == []
    assert after_many - after_few < 100_000
    (line,) = _lines(tmp_path)
    assert (len(line.requests), line.loads, line.evictions) == (2600, 1300, 1300)


def test_records_that_come_too_fast_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too slow costs neither memory nor a request; the run says what is missing."""
    monkeypatch.setattr("traces.recording.writer.MOST_WAITING", 3)
    with RunTrace("fast", tmp_path) as run, run._writer._draining:
        for number in range(5):
            run.record_span(f"s{number}", now(), now())
    assert len(run.problems) == 1
    assert "2 were dropped" in run.problems[0]


# -- a share of the requests -------------------------------------------------------------------------


def test_a_share_of_the_requests_is_recorded_and_every_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sample` decides for each request that is in no span; the device's account is whole."""
    dice = iter([0.5, 0.009, 0.01, 0.0])
    monkeypatch.setattr("traces.recording.run_recording.random.random", lambda: next(dice))
    with RunTrace("service", tmp_path, sample=0.01) as run:
        for number in range(4):
            run.request(request(f"r{number}", now()))
        run.load(load("l1", now()))
        run.evict(evict("e1", now()))
    (line,) = _lines(tmp_path)
    assert [one.request_id for one in line.requests] == ["r1", "r3"]
    assert (line.loads, line.evictions) == (1, 1)


def test_a_sampled_span_is_recorded_with_all_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's unit of work is on the trace whole or not at all, also what its threads did."""
    dice = iter([0.9, 0.1])
    monkeypatch.setattr("traces.recording.run_recording.random.random", lambda: next(dice))
    with RunTrace("units", tmp_path, sample=0.5) as run:
        for unit in ("left out", "kept"):
            with run.span(unit), run.span(f"{unit}, inner"):
                run.request(request(unit, now()))
                record = run.carry(run.record_span)
                worker = threading.Thread(target=record, args=("w", 1, 2))
                worker.start()
                worker.join()
    assert run.trace_path is not None
    assert set(written(run.trace_path)) >= {"run", "kept", "kept, inner", "request", "w"}
    assert written(run.trace_path)["w"] == written(run.trace_path)["request"] == 1


@pytest.mark.parametrize("sample", [-0.1, 1.5, float("nan")])
def test_a_sample_that_is_no_share_is_refused(sample: float) -> None:
    """The message says what is allowed."""
    with pytest.raises(ValueError, match="from 0 to 1"):
        RunTrace(sample=sample)


@pytest.mark.parametrize("key", ["sample", "max_bytes", "max_age"])
@pytest.mark.parametrize("value", ["x", True, float("inf"), float("nan"), -1])
def test_a_number_that_a_run_cannot_have_is_refused_by_name(key: str, value: Any) -> None:
    """Before anything is written."""
    with pytest.raises(ValueError, match=f"{key} cannot be .* Give a number "):
        RunTrace(**{key: value})


# -- several files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [{"max_bytes": 20_000}, {"max_age": 0.0}])
def test_a_run_that_grows_large_or_old_goes_on_in_the_next_file(
    tmp_path: Path, limit: dict[str, float]
) -> None:
    """Each file opens by itself and has a line with its own requests; an open span keeps its lane."""
    with RunTrace("long", tmp_path, **limit) as run, run.span("open all the time"):  # type: ignore[arg-type]
        for number in range(60):
            run.request(request(f"r{number}", now() + number * 100 * MS))
            if number % 20 == 19:
                run.flush()
    assert run.problems == []
    lines = _lines(tmp_path)
    assert [line.run_id for line in lines[:3]] == ["long", "long-2", "long-3"]
    assert [one.request_id for line in lines for one in line.requests] == [
        f"r{number}" for number in range(60)
    ]
    for line in lines:
        assert line.trace is not None
        path = Path(line.trace)
        assert query(path, PROBLEMS) == []
        assert written(path)["request"] == len(line.requests)
        assert written(path)["run"] == 1
        assert path.stat().st_mode & 0o777 == 0o600
    assert str(run.trace_path) == lines[-1].trace
    assert sum(written(Path(str(line.trace)))["open all the time"] for line in lines) == 1


def test_no_file_of_a_run_is_written_through_a_link(tmp_path: Path) -> None:
    """A link that another user left in a shared folder leads nowhere."""
    target = tmp_path / "victim"
    target.write_text("mine")
    folder = tmp_path / "runs"
    folder.mkdir()
    for name in ("runs.jsonl", "linked.trace.json.gz.part"):
        (folder / name).symlink_to(target)
    with RunTrace("linked", folder, gzip=True) as run:
        run.request(request("r1", now()))
    assert target.read_text() == "mine"
    assert {problem.split(":")[0] for problem in run.problems} == {"trace file", "runs.jsonl"}
