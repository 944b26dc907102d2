"""The end of a run is bounded, whatever records meanwhile; what is lost is counted and said in the file."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from shim.cli import main
from tests.traces.support import events, now, request, written
from traces import RunLine, RunTrace, read_runs
from traces.recording import writer as writer_module
from traces.recording.broken_sinks import Problems, Tally
from traces.recording.writer import Writer


class Told:
    """A writer without a thread of its own, and what came of it."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.problems = Problems("r")
        self.writer = Writer("w", self.problems, lambda: None)
        self.writer._thread = threading.current_thread()

    def put(self, *numbers: int) -> None:
        """Have these noted later."""
        for number in numbers:
            self.writer.put((self.done.append, number))

    def put_elsewhere(self, *numbers: int) -> None:
        """The same from another thread."""
        thread = threading.Thread(target=self.put, args=numbers)
        thread.start()
        thread.join()


@pytest.fixture
def told() -> Told:
    """A writer whose thread never runs: what happens is what the test asks for."""
    return Told()


def test_records_that_come_while_others_are_written_wait_for_the_next_batch(told: Told) -> None:
    """A thread that never stops recording holds up no flush."""

    def again(count: int) -> None:
        told.done.append(count)
        if count < 50:
            told.writer.put((again, count + 1))

    told.writer.put((again, 1))
    told.writer.flush()
    assert told.done == [1]


def test_once_a_run_ends_only_the_ending_thread_is_listened_to(told: Told) -> None:
    """What was put before is written, what other threads put afterwards is counted and said."""
    told.put(1)
    told.put_elsewhere(2)
    told.writer.end(lambda: told.done.append(0))
    told.put_elsewhere(3, 4)
    told.put(5)
    told.writer.close()
    assert told.done == [1, 2, 0, 5]
    assert told.problems.found == [
        "records that came too late: 2 came after the end of the run and were dropped"
    ]


def test_a_flush_of_another_thread_leaves_the_rest_to_the_end(told: Told) -> None:
    """It has no bound of its own, and would be waited for."""
    told.put(1)
    told.writer.put((setattr, told.writer, "_ending", threading.get_ident()))
    told.put(2, 3)
    flush = threading.Thread(target=told.writer.flush)
    flush.start()
    flush.join()
    assert told.done == [1]
    told.writer.close()
    assert told.done == [1, 2, 3]


def test_the_end_writes_no_longer_than_its_bound(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left then is dropped, counted and said; nothing waits any more."""
    seconds: Iterator[float] = iter([100.0, 100.0, 101.0, 100.0 + writer_module.END_SECONDS])
    told.put(*range(10))
    monkeypatch.setattr(writer_module, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    told.writer.close()
    assert told.done == [0, 1]
    assert told.problems.found == [f"records: 8 {writer_module._TOO_MANY}"]


def test_what_waits_is_bounded_and_every_loss_is_in_the_count(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk costs no memory: the count grows with each batch, the log has one line."""
    monkeypatch.setattr(writer_module, "MOST_WAITING", 3)
    told.put(*range(5))
    told.writer.flush()
    told.put(*range(10))
    told.writer.flush()
    assert len(told.done) == 6
    assert told.problems.found == [f"records that came too fast: 9 {writer_module._TOO_FAST}"]


def test_a_tally_is_whole_whichever_threads_count() -> None:
    """Also between two looks at it."""
    tally = Tally()

    def add() -> None:
        for _ in range(2000):
            tally.add()

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    seen = tally.take()
    for thread in threads:
        thread.join()
    assert seen + tally.take() == 16_000
    assert tally.take() == 0


def test_eight_threads_that_record_without_a_pause_hold_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that they recorded is in the file, or in the counts that the file and the line say."""
    monkeypatch.setattr(writer_module, "END_SECONDS", 0.1)
    monkeypatch.setattr(writer_module, "MOST_WAITING", 2000)
    counts = [0] * 8
    busy = [threading.Event() for _ in counts]

    def record(number: int) -> None:
        while run.active:
            run.record_span("s", now(), now())
            counts[number] += 1
            if counts[number] == 20:
                busy[number].set()

    with RunTrace("r", tmp_path) as run:
        threads = [threading.Thread(target=record, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for event in busy:
            assert event.wait(60)
    for thread in threads:
        thread.join()
    assert run.trace_path is not None
    told = " ".join(run.problems)
    lost = sum(int(each.replace(",", "")) for each in re.findall(r": ([0-9,]+) ", told))
    # Each thread may have been between its look at the run and its record.
    assert 0 <= sum(counts) - written(run.trace_path)["s"] - lost <= 8
    assert "came after the end of the run" in told
    whole = [event for event in events(run.trace_path) if event.get("cat") == "run"]
    assert whole[-1]["args"]["keepwarm.run.problems"] == "; ".join(run.problems)
    said = CliRunner().invoke(main, ["trace", "summary", str(run.trace_path)])
    assert "lacks something: " in said.stderr
    assert "came after the end of the run" in said.stderr
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    assert line.problems == tuple(run.problems)


def test_a_run_without_problems_says_none(tmp_path: Path) -> None:
    """The attribute is there only where something is missing."""
    with RunTrace("r", tmp_path) as run:
        run.request(request("q", now()))
    assert run.trace_path is not None
    assert "keepwarm.run.problems" not in json.dumps(events(run.trace_path))


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_whose_end_is_interrupted_ends_nevertheless(tmp_path: Path) -> None:
    """Ctrl-C at that moment left its thread, its open file and no line in the list of runs."""
    run = RunTrace("r", tmp_path)
    run.on_finish(_interrupt)
    with pytest.raises(KeyboardInterrupt), run, run.span("piece"):
        pass
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    assert run.trace_path is not None
    assert written(run.trace_path)["piece"] == 1
    assert not run.active
    for thread in threading.enumerate():
        if "keepwarm-trace-r" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("end", [Writer.end, Writer.close])
def test_what_an_interrupted_end_does_not_write_is_counted(
    told: Told, end: Callable[[Writer], None]
) -> None:
    """It is said in the run's problems, as all that is lost, and no later step takes it up again."""
    told.put(1)
    told.writer.put((_interrupt,))
    told.put(2, 3)
    with pytest.raises(KeyboardInterrupt):
        end(told.writer)
    told.writer.close()
    assert told.done == [1]
    assert told.problems.found == ["records: 2 were dropped: the end of the run was interrupted"]


def test_a_part_that_begins_while_the_run_ends_is_no_shorter_than_nothing(tmp_path: Path) -> None:
    """Its length was below zero in the list of runs and in its file."""
    with RunTrace("r", tmp_path, max_bytes=1) as run, run.span("piece"):
        pass
    lines = list(read_runs(run.runs_path))
    assert len(lines) == 2
    assert all(isinstance(line, RunLine) and line.seconds >= 0 for line in lines)
    assert run.trace_path is not None
    assert all(event.get("dur", 0) >= 0 for event in events(run.trace_path))
