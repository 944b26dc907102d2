"""What a run records, of which threads, and what it does when something is broken."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.traces.support import MS, events, evict, load, now, request, written
from traces import (
    EnteredTwice,
    RunLine,
    RunTrace,
    append_run,
    current_run,
    default_directory,
    names,
    read_runs,
)
from traces.recording.exporters import SHUTDOWN_SECONDS


def _line(trace: RunTrace) -> RunLine:
    (line,) = read_runs(trace.runs_path)
    assert isinstance(line, RunLine)
    return line


# -- the line in runs.jsonl --------------------------------------------------------------------------


def test_the_line_tells_each_request_in_the_order_of_arrival(tmp_path: Path) -> None:
    """Waits, loads, first tokens and rates of a run are in its line, ready to be replayed."""
    with RunTrace("numbers", tmp_path) as trace:
        start = now()
        trace.request(request("second", start + 50 * MS, predicted_ms=60.0))
        late = start + 90 * MS
        trace.request(request("third", late, completion_tokens=1, predicted_ms=0.001))
        trace.request(request("first", start, waited_for_load="l1", cold=True))
        trace.load(load("l1", start, ms=9))
        trace.evict(evict("e1", start))
        trace.evict(evict("e1", start))
    line = _line(trace)
    assert (line.run_id, line.status, line.loads, line.evictions) == ("numbers", "ok", 1, 1)
    assert line.load_seconds == pytest.approx(0.009)
    assert line.trace == str(trace.trace_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.started)
    first, second, third = line.requests
    assert (first.request_id, first.cold) == ("first", True)
    assert first.load_s == pytest.approx(0.009)
    assert (second.request_id, second.cold) == ("second", False)
    assert second.load_s == 0
    assert second.arrival_s - first.arrival_s == pytest.approx(0.05)
    assert (first.waited_s, first.ttft_s, first.total_s) == pytest.approx((0.01, 0.031, 0.061))
    assert first.tokens_per_s == pytest.approx(6 / 0.030)
    assert second.tokens_per_s == pytest.approx(100)
    assert (first.prompt_tokens, first.output_tokens) == (12, 6)
    assert third.tokens_per_s is None, "a single token has no speed"


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_run_that_raised_has_its_line_and_passes_the_exception_on(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    """Failed and interrupted runs are the ones that people look for."""
    trace = RunTrace("bad", tmp_path)

    def work() -> None:
        with trace:
            trace.request(request("r1", now()))
            raise kind("three \ud800 apples")

    with pytest.raises(kind):
        work()
    line = _line(trace)
    assert (line.status, line.error_type, line.error_message) == (
        "error",
        kind.__name__,
        "three \ufffd apples",
    )
    assert len(line.requests) == 1
    assert trace.trace_path is not None
    assert written(trace.trace_path)["run"] == 1
    assert current_run() is None


def test_a_clean_exit_is_no_error(tmp_path: Path) -> None:
    """`sys.exit(0)` inside a run ends it well."""
    trace = RunTrace(directory=tmp_path)
    with pytest.raises(SystemExit), trace:
        raise SystemExit(0)
    assert _line(trace).status == "ok"


def test_lines_of_concurrent_runs_never_mix(tmp_path: Path) -> None:
    """Each line is one write: 8 threads with long lines leave whole lines only."""
    path = tmp_path / "runs.jsonl"

    def append(number: int) -> None:
        for index in range(20):
            append_run(path, RunLine(f"{number}-{index}", "s" * 50_000, "", 1.0, "ok"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    lines = list(read_runs(path))
    found = {line.run_id for line in lines if isinstance(line, RunLine)}
    assert len(lines) == len(found) == 160
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_cut_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    """The next run starts a line of its own, and the damaged one is named when read."""
    path = tmp_path / "runs.jsonl"
    path.write_text('{"run_id": "cut", "serv')
    append_run(path, RunLine("next", "s", "", 1.0, "ok"))
    damaged, good = read_runs(path)
    assert isinstance(damaged, ValueError)
    assert f"{path}:1" in str(damaged)
    assert isinstance(good, RunLine)
    assert good.run_id == "next"


def test_a_line_that_is_nested_too_deeply_spoils_no_other(tmp_path: Path) -> None:
    """It is named as any other damaged line is."""
    path = tmp_path / "runs.jsonl"
    path.write_text("[" * 5000 + "\n")
    append_run(path, RunLine("next", "s", "", 1.0, "ok"))
    damaged, good = read_runs(path)
    assert isinstance(damaged, ValueError)
    assert isinstance(good, RunLine)


# -- prompts and answers -----------------------------------------------------------------------------


@pytest.mark.parametrize("record_content", [False, True])
def test_prompts_and_answers_are_written_only_on_request(
    tmp_path: Path, record_content: bool
) -> None:
    """By default no file holds a word of what was asked or answered, whichever way it came in."""
    exporter = InMemorySpanExporter()
    trace = RunTrace("c", tmp_path, record_content=record_content, exporters=[exporter])
    with trace:
        record = request(
            "r1",
            now(),
            prompt="SECRET question",
            answer="SECRET answer",
            attributes={"gen_ai.prompt": "SECRET too", "gen_ai.system_instructions": "SECRET"},
        )
        trace.request(record)
    assert trace.trace_path is not None
    texts = [trace.trace_path.read_text(), trace.runs_path.read_text()]
    texts.append("".join(span.to_json() for span in exporter.get_finished_spans()))
    assert [("SECRET" in text) for text in texts] == [record_content] * 3
    assert _line(trace).requests[0].prompt == ("SECRET question" if record_content else None)


def test_files_are_their_owners_only(tmp_path: Path) -> None:
    """Traces may hold prompts: 0600 in a folder of 0700."""
    with RunTrace(directory=tmp_path / "new" / "runs") as trace:
        pass
    assert trace.trace_path is not None
    assert trace.trace_path.stat().st_mode & 0o777 == 0o600
    assert trace.runs_path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "runs").stat().st_mode & 0o777 == 0o700


# -- which run ---------------------------------------------------------------------------------------


def test_the_current_run_follows_tasks_and_threads_and_ends_with_the_run(tmp_path: Path) -> None:
    """A request knows its run in the same context, in a task, and in a plain thread."""
    assert current_run() is None
    seen: dict[str, RunTrace | None] = {}

    async def main() -> None:
        async def task() -> None:
            seen["task"] = current_run()

        await asyncio.gather(task())
        await asyncio.to_thread(lambda: seen.__setitem__("to_thread", current_run()))

    with RunTrace(directory=tmp_path) as trace:
        seen["here"] = current_run()
        with ThreadPoolExecutor(1) as pool:
            seen["thread"] = pool.submit(current_run).result()
        asyncio.run(main())
    assert seen == dict.fromkeys(("here", "thread", "task", "to_thread"), trace)
    assert current_run() is None


def test_a_thread_is_never_given_the_wrong_run(tmp_path: Path) -> None:
    """With two runs active, or one that is not process-wide, a plain thread has none unless carried."""
    inside = threading.Barrier(3)
    done = threading.Event()
    runs: list[RunTrace | None] = []

    def hold(name: str) -> None:
        with RunTrace(name, tmp_path) as trace, ThreadPoolExecutor(1) as pool:
            inside.wait(60)
            runs.append(pool.submit(trace.carry(current_run)).result())
            assert current_run() is trace
            done.wait(60)

    holders = [threading.Thread(target=hold, args=(name,)) for name in ("a", "b")]
    for holder in holders:
        holder.start()
    inside.wait(60)
    try:
        assert current_run() is None
    finally:
        done.set()
        for holder in holders:
            holder.join()
    assert sorted(each.run_id for each in runs if each is not None) == ["a", "b"]
    with RunTrace("c", tmp_path, process_wide=False), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_run).result() is None


def test_a_task_from_outside_of_the_run_is_not_in_it(tmp_path: Path) -> None:
    """A server's other requests do not end up on the trace of one of them."""

    async def main() -> tuple[RunTrace | None, RunTrace | None]:
        started, ready = asyncio.Event(), asyncio.Event()

        async def traced() -> RunTrace | None:
            with RunTrace(directory=tmp_path):
                started.set()
                await ready.wait()
                return current_run()

        async def other() -> RunTrace | None:
            await started.wait()
            ready.set()
            return current_run()

        return await asyncio.gather(traced(), other())

    mine, others = asyncio.run(main())
    assert mine is not None
    assert others is None


def test_nested_runs_give_way_to_the_outer_one_again(tmp_path: Path) -> None:
    """A run inside a run records to itself, then the outer one goes on."""
    with RunTrace("outer", tmp_path) as outer:
        with RunTrace("inner", tmp_path) as inner:
            assert current_run() is inner
        assert current_run() is outer


# -- spans -------------------------------------------------------------------------------------------


def test_spans_of_threads_and_tasks_are_children_of_what_was_open_and_never_share_a_lane(
    tmp_path: Path,
) -> None:
    """The tree is right in OpenTelemetry, and overlapping stages lie on lanes of their own."""
    exporter = InMemorySpanExporter()

    async def stage(trace: RunTrace, name: str, both: asyncio.Barrier) -> None:
        with trace.span(name):
            await both.wait()
            with trace.span(f"{name} inner"):
                await both.wait()

    async def main(trace: RunTrace) -> None:
        both = asyncio.Barrier(2)
        with trace.span("outer"):
            await asyncio.gather(stage(trace, "a", both), stage(trace, "b", both))

    with RunTrace("tree", tmp_path, exporters=[exporter]) as trace:
        asyncio.run(main(trace))
        trace.request(request("r1", now()))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    by_id = {span.context.span_id: span.name for span in spans.values() if span.context}
    parents = {name: by_id.get(span.parent.span_id) for name, span in spans.items() if span.parent}
    assert parents == {
        "outer": "run",
        "a": "outer",
        "b": "outer",
        "a inner": "a",
        "b inner": "b",
        "request": "run",
        **dict.fromkeys(("queue", "admit", "prompt_evaluation", "generate"), "request"),
    }
    assert trace.trace_path is not None
    lanes = {
        event["name"]: event["tid"] for event in events(trace.trace_path) if event["ph"] == "X"
    }
    assert lanes["a"] == lanes["a inner"]
    assert lanes["b"] == lanes["b inner"]
    assert len({lanes["outer"], lanes["a"], lanes["b"]}) == 3


def test_a_request_links_to_the_load_it_waited_for(tmp_path: Path) -> None:
    """The arrow of the trace is a link in OpenTelemetry, and names follow its conventions."""
    exporter = InMemorySpanExporter()
    with RunTrace("links", tmp_path, exporters=[exporter], service="svc") as trace:
        start = now()
        trace.load(load("l1", start))
        trace.request(
            request("r1", start, waited_for_load="l1", error="EngineDied", cached_tokens=3)
        )
    spans = {span.name: span for span in exporter.get_finished_spans()}
    span = spans["request"]
    assert [link.context for link in span.links] == [spans["model_load"].context]
    assert span.attributes is not None
    assert span.attributes["gen_ai.request.model"] == "m"
    assert span.attributes["gen_ai.usage.input_tokens"] == 12
    assert span.attributes["gen_ai.usage.cache_read.input_tokens"] == 3
    assert span.attributes["error.type"] == "EngineDied"
    assert not span.status.is_ok
    assert span.resource.attributes["service.name"] == "svc"


def test_a_span_that_outlives_its_run_is_said_to_be_missing(tmp_path: Path) -> None:
    """Nothing raises, and the run says what is not on its trace."""
    with RunTrace("late", tmp_path) as trace:
        open_span = trace.span("straggler")
        open_span.__enter__()
    open_span.__exit__(None, None, None)
    assert any("straggler" in problem for problem in trace.problems)


# -- what is broken breaks nothing ---------------------------------------------------------------------


class _Broken(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise ConnectionError("no collector here")

    def shutdown(self) -> None:
        raise ConnectionError("nor here")


def test_a_broken_exporter_is_said_once_and_costs_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trace file and the line are whole; the warning comes once."""
    caplog.set_level(logging.WARNING, "keepwarm")
    with RunTrace("broken", tmp_path, exporters=[_Broken()]) as trace:
        for index in range(1200):
            trace.request(request(f"r{index}", now()))
    assert trace.problems == [
        "exporter _Broken: 6,001 spans were not taken: ConnectionError: no collector here"
    ]
    assert len([entry for entry in caplog.records if entry.name == "keepwarm.traces"]) == 1
    line = _line(trace)
    assert len(line.requests) == 1200
    assert line.problems == tuple(trace.problems)


def test_an_exporter_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of a run waits a bounded time for its exporters."""
    assert SHUTDOWN_SECONDS <= 5
    monkeypatch.setattr("traces.recording.exporters.SHUTDOWN_SECONDS", 0.05)
    release = threading.Event()

    class Hanging(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            release.wait(60)
            return super().export(spans)

    with RunTrace("hangs", tmp_path, exporters=[Hanging()]) as trace:
        trace.request(request("r1", now()))
    release.set()
    assert len(trace.problems) == 1
    assert _line(trace).status == "ok"


def test_a_directory_that_cannot_be_written_costs_no_request(tmp_path: Path) -> None:
    """The run goes on without its files and says so."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with RunTrace("blocked", blocked / "runs") as trace, trace.span("work"):
        trace.request(request("r1", now()))
    assert trace.trace_path is None
    assert {problem.split(":")[0] for problem in trace.problems} == {"trace file", "runs.jsonl"}


def test_a_full_disk_in_the_middle_costs_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trace ends early, once said; the line is still written."""
    with RunTrace("full", tmp_path) as trace:
        trace.request(request("r1", now()))
        with monkeypatch.context() as patch:

            def refuse(descriptor: int, data: bytes) -> int:
                raise OSError(28, "No space left on device")

            patch.setattr("traces.chrome.file.os.write", refuse)
            trace.request(request("r2", now()))
            trace.flush()
            trace.request(request("r3", now()))
            trace.flush()
    assert len(trace.problems) == 1
    assert "No space left" in trace.problems[0]
    assert len(_line(trace).requests) == 3


def test_a_record_that_makes_no_sense_costs_no_request(tmp_path: Path) -> None:
    """A wrong type is a problem of the run, never an exception in the caller's request."""

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    with RunTrace("odd", tmp_path) as trace:
        trace.records(lambda: [request("r1", now(), end_ns="soon")])
        trace.request(request("r2", now(), attributes={"x": Unprintable(), "y": {1: [None]}}))
    assert [each.request_id for each in _line(trace).requests] == ["r2"]
    (problem,) = trace.problems
    assert "end_ns of a RequestRecord cannot be 'soon' (str). Give a whole num" in problem


def test_a_disabled_sdk_is_said_out_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SDK_DISABLED leaves exporters without spans: the run says why, and its file is whole."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    exporter = InMemorySpanExporter()
    with RunTrace("disabled", tmp_path, exporters=[exporter]) as trace:
        trace.request(request("r1", now()))
    assert "OTEL_SDK_DISABLED" in trace.problems[0]
    assert exporter.get_finished_spans() == ()
    assert trace.trace_path is not None
    assert written(trace.trace_path)["request"] == 1


# -- names and places ----------------------------------------------------------------------------------


def test_a_run_id_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    """A retried run does not write over the first one's trace, packed or not."""
    names = []
    for gzip in (True, False, False):
        with RunTrace("same", tmp_path, gzip=gzip) as trace:
            pass
        assert trace.trace_path is not None
        names.append(trace.trace_path.name)
    assert names == ["same.trace.json.gz", "same-2.trace.json", "same-3.trace.json"]


@pytest.mark.parametrize("run_id", ["", "../up", ".hidden", "a/b", "a" * 121, "new\nline"])
def test_a_run_id_that_cannot_name_a_file_is_refused(run_id: str) -> None:
    """The message says what was found and what is allowed."""
    with pytest.raises(ValueError, match=re.escape(repr(run_id)[:60])):
        RunTrace(run_id)


def test_a_run_is_entered_once(tmp_path: Path) -> None:
    """A second entry would mix two runs in one file."""
    with RunTrace(directory=tmp_path) as trace:
        pass
    with pytest.raises(EnteredTwice, match=f"Run {trace.run_id} .* Make a new RunTrace"), trace:
        pass


def test_a_span_that_is_open_is_not_entered_again(tmp_path: Path) -> None:
    """Its second end raised in the program; one that has ended begins anew, at its own time."""
    with RunTrace(directory=tmp_path) as trace:
        assert trace.started_ns
        piece = trace.span("piece")
        with piece, pytest.raises(EnteredTwice, match=r"by `run.span` for each `with`"), piece:
            pass
        began_ns = now()
        with piece:
            pass
    assert trace.trace_path is not None
    first, second = [e for e in events(trace.trace_path) if e["name"] == "piece"]
    assert second["ts"] >= first["ts"] + first["dur"]
    assert began_ns >= trace.started_ns


def test_a_span_that_is_entered_anew_is_of_the_thread_that_enters_it(tmp_path: Path) -> None:
    """It was said to be of its first one. What is set in between changes no record that waits."""
    with RunTrace(directory=tmp_path) as trace, trace._writer._draining:
        piece = trace.span("piece")
        with piece:
            pass
        piece.set(number=2)

        def again() -> None:
            with piece:
                pass

        thread = threading.Thread(target=again, name="second")
        thread.start()
        thread.join()
    assert trace.trace_path is not None
    first, second = [e["args"] for e in events(trace.trace_path) if e["name"] == "piece"]
    assert first == {names.THREAD: threading.current_thread().name}
    assert second == {names.THREAD: "second", "number": 2}


def test_a_run_that_was_not_entered_has_not_started(tmp_path: Path) -> None:
    """Asking it raised an error about an attribute of its own."""
    assert RunTrace(directory=tmp_path).started_ns == 0


def test_the_default_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """KEEPWARM_TRACE_DIR, then the XDG state folder, then the one in the home folder."""
    monkeypatch.setenv("KEEPWARM_TRACE_DIR", "/a/b")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_directory() == Path("/a/b")
    monkeypatch.delenv("KEEPWARM_TRACE_DIR")
    assert default_directory() == Path("/state/keepwarm/runs")
    monkeypatch.delenv("XDG_STATE_HOME")
    assert default_directory() == Path.home() / ".local/state/keepwarm/runs"

    def homeless(_cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(homeless))
    assert default_directory() == Path("/.local/state/keepwarm/runs")


def test_the_file_of_an_empty_run_is_a_json_array(tmp_path: Path) -> None:
    """Every finished file is JSON, whatever it holds."""
    with RunTrace(directory=tmp_path) as trace:
        pass
    assert trace.trace_path is not None
    assert [event["name"] for event in json.loads(trace.trace_path.read_text())][-1] == "run"


def test_what_was_to_be_done_at_the_end_is_done_while_the_run_still_records(tmp_path: Path) -> None:
    """An action of `on_finish` can still add a load; one that fails is a problem and nothing more."""

    def fail() -> None:
        raise OSError("the keeper is gone")

    with RunTrace(directory=tmp_path) as run:
        run.on_finish(fail)
        run.on_finish(lambda: run.load(load("x/1", now())))
    (line,) = read_runs(run.runs_path)
    assert isinstance(line, RunLine)
    assert line.loads == 1
    assert ["keeper is gone" in problem for problem in run.problems] == [True]
