"""What waits to be written or exported is bounded in bytes, and what is lost of long values is counted."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from backends.openai.protocol import ChatRequest
from shim.calls.call import Call
from shim.calls.tracing import trace_call
from shim.replies import Answer, EmbeddingReply, Reply, SpeechReply
from tests.traces.support import evict, load, request, written
from traces import CounterSample, Incident, RunTrace
from traces.chrome import view as view_module
from traces.processes import taking_in
from traces.processes.late_parts import add_late_parts
from traces.processes.part_of_run import PartOfRun
from traces.recording import exporters as exporters_module
from traces.recording import writer as writer_module
from traces.recording.broken_sinks import Problems
from traces.recording.held_bytes import held_bytes

LONG = "x" * 100_000
WIDE = "\N{HOUSE BUILDING}" * 25_000
"""As many bytes."""
SOME = 1_000_000
"""The bound in these tests: ten such texts."""


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bounds, so that a test is quick."""
    monkeypatch.setattr(writer_module, "MOST_WAITING_BYTES", SOME)
    monkeypatch.setattr(exporters_module, "MOST_WAITING_BYTES", SOME)


def _span(run: RunTrace, number: int) -> None:
    with run.span("s", text=f"{number}{LONG}"):
        pass


def _later(run: RunTrace, number: int) -> None:
    with run.span("s") as span:
        span.set(text=f"{number}{LONG}")


def _failed(run: RunTrace, number: int) -> None:
    with pytest.raises(ValueError, match="x"), run.span("s"):
        raise ValueError(f"{number}{LONG}")


Record = Callable[[RunTrace, int], None]
DOORS: dict[str, Record] = {
    "span": _span,
    "span set later": _later,
    "span that failed": _failed,
    "span of numbers": lambda run, n: run.record_span(
        "s", n, n, {f"{i}-{n}-with-a-long-name": i for i in range(1000)}
    ),
    "name": lambda run, n: run.record_span(f"{n}{LONG}", n, n),
    "key": lambda run, n: run.record_span("s", n, n, {f"{n}{LONG}": 1}),
    "list": lambda run, n: run.record_span("s", n, n, {"of": [f"{n}", LONG]}),
    "prompt": lambda run, n: run.request(request("r", n, prompt=f"{n}{LONG}")),
    "wide prompt": lambda run, n: run.request(request("r", n, prompt=f"{n}{WIDE}")),
    "error": lambda run, n: run.request(request("r", n, error="E", error_message=f"{n}{LONG}")),
    "attribute": lambda run, n: run.request(request("r", n, attributes={"a": [f"{n}{LONG}"]})),
    "load": lambda run, n: run.load(load(f"{n}", n, attributes={"a": {"b": f"{n}{LONG}"}})),
    "evict": lambda run, n: run.evict(evict(f"{n}{LONG}", n)),
    "incident": lambda run, n: run.incident(Incident("died", n, n, f"{n}{LONG}")),
    "counter": lambda run, n: run.counter(CounterSample(n, "d", {f"{n}{LONG}": 1}, 1, 2)),
    "built later": lambda run, _: run.records(list, 100_000),
}


@pytest.mark.parametrize("door", DOORS)
def test_records_with_long_values_wait_up_to_a_bound_in_bytes(tmp_path: Path, door: str) -> None:
    """While the disk hangs: a hundred texts of 100 kB took 10 MB, and 131,072 of them could wait."""
    with RunTrace("r", tmp_path) as run:
        with run._writer._draining:
            tracemalloc.start()
            for number in range(100):
                DOORS[door](run, number)
            taken = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            waiting = len(run._writer._waiting)
            # A span that is opened is another record, a short one.
            assert sum(one[0] == run._writer._call_long for one in run._writer._waiting) <= 16
        assert taken < 3 * SOME
    (problem,) = run.problems
    lost = int(problem.split(": ")[1].split()[0])
    opened = 100 if "span" in door and "numbers" not in door else 0
    assert problem.startswith("records with long values: ")
    assert waiting + lost == 100 + opened


def test_what_was_written_makes_room(tmp_path: Path) -> None:
    """The bound is for what waits, and not for a run."""
    with RunTrace("r", tmp_path) as run:
        for number in range(30):
            _span(run, number)
            run.flush()
    assert run.problems == []
    assert run.trace_path is not None
    assert written(run.trace_path)["s"] == 30


def test_what_the_end_of_a_run_drops_makes_room_for_what_it_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The keeper's history, say, comes once the wait for what callers recorded is over."""
    monkeypatch.setattr(writer_module, "END_SECONDS", 0.0)
    problems, recorded = Problems("r"), list[int]()
    writer = writer_module.Writer("writer", problems, lambda: None)
    with writer._draining:
        for _ in range(9):
            writer.put((recorded.append, 1), SOME // 9)
        writer.end(lambda: writer.put((recorded.append, 2), SOME // 2))
        monkeypatch.undo()
        writer.flush()
    writer.close()
    assert recorded == [2]
    assert [problem.split(" were")[0] for problem in problems.found] == ["records: 9"]


def test_long_records_are_written_before_all_of_them_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the texts of a whole batch would be in memory once more, as events."""
    monkeypatch.setattr(writer_module, "_WRITE_BYTES", 300_000)
    with RunTrace("r", tmp_path) as run:
        sizes = list[int]()
        wrote = run._writer._written

        def counted() -> None:
            sizes.append(sum(map(len, run._files._view._events._batch)))
            wrote()

        run._writer._written = counted
        with run._writer._draining:
            for number in range(9):
                _span(run, number)
        run.flush()
    assert max(sizes) < 600_000
    assert run.problems == []


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_what_other_processes_wrote_is_taken_in_within_a_bound_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, at_end: bool, late: bool
) -> None:
    """All events of a part were in memory before one was written, and 65,536 of its last records."""
    monkeypatch.setattr(view_module, "GATHERED", SOME // 4)
    monkeypatch.setattr(taking_in, "_MOST_AT_END_BYTES", SOME)
    with RunTrace("r", tmp_path) as run:
        assert run._shared is not None
        part = PartOfRun(run._shared, Problems("r"))
        if at_end:
            part.recorder.ends()
        for number in range(100):
            part.recorder.record(load(f"{number}", number, attributes={"a": f"{number}{LONG}"}), 0)
            part.flush()
        part.close()
        if not late:
            taken = peak_of(lambda: run._files.take_in(last=False))
            held = len(run._files._taken._at_end) if run._files._taken else 0
            assert (held > 0, held < 12) == (at_end, True)
        else:
            (path,) = tmp_path.glob("*.part")
            path.rename(path.with_suffix(".away"))
    assert run.trace_path is not None
    if late:
        path.with_suffix(".away").rename(path)
        trace = run.trace_path
        taken = peak_of(lambda: add_late_parts(trace))
    assert taken < 4 * SOME
    assert written(run.trace_path)["model_load m"] == 100
    assert run.problems == []


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that the work takes at a time."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_texts_of_a_call_count_while_its_record_waits(tmp_path: Path) -> None:
    """Its messages and its answer are kept until the record is made."""
    with RunTrace("r", tmp_path) as run, run._writer._draining:
        for number in range(100):
            messages = [{"role": "user", "content": f"{number}{LONG}"}]
            call = Call("m", ChatRequest(messages), {}, {}, remote=False)
            trace_call(call, Reply("m", "short"), None)
        assert len(run._writer._waiting) < 20
    assert "records with long values" in run.problems[0]


@pytest.mark.parametrize(
    "answer",
    [
        EmbeddingReply("m", vectors=((0.5,) * 50_000,)),
        SpeechReply("m", audio=LONG.encode()),
        Reply("m", "short", logprobs=({"token": LONG},), reasoning=LONG),
    ],
)
def test_what_a_record_does_not_say_of_an_answer_does_not_wait(
    tmp_path: Path, answer: Answer
) -> None:
    """Vectors waited, and made a record a long one. Log-probabilities waited and did not count."""
    with RunTrace("r", tmp_path) as run, run._writer._draining:
        for number in range(30):
            call = Call("m", ChatRequest(f"{number}"), {}, {}, remote=False)
            trace_call(call, copy.copy(answer), None)
        waiting = [one for one in run._writer._waiting if one[0] == run._recorder.records]
        kept = [cell.cell_contents for one in waiting for cell in one[1].__closure__]
    assert len(waiting) == 30
    assert held_bytes(kept) < SOME
    assert run.problems == []


@pytest.mark.parametrize("messages", [5, [3], [{"role": "user", "content": ["x"]}], [{}]])
def test_messages_of_any_form_have_some_size(tmp_path: Path, messages: Any) -> None:
    """A call that is refused for them is on the trace, with that error."""
    with RunTrace("r", tmp_path) as run:
        call = Call("m", ChatRequest(messages), {}, {}, remote=False)
        trace_call(call, None, ValueError("refused"))
    assert run.trace_path is not None
    assert "refused" in run.trace_path.read_text()


def test_a_value_that_is_set_again_counts_once(tmp_path: Path) -> None:
    """A span whose text grows with a stream was dropped, for texts that it had no more."""
    with RunTrace("r", tmp_path) as run, run.span("s") as span:
        for number in range(50):
            span.set(text=f"{number}{LONG}")
    assert run.problems == []
    assert run.trace_path is not None
    assert written(run.trace_path)["s"] == 1


class _Hangs(SpanExporter):
    """Takes its first batch and does not return before it is told to."""

    def __init__(self) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.got = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As it says."""
        self.asked.set()
        assert self.go_on.wait(60)
        self.got += sum(span.name in ("s", LONG) for span in spans)
        return SpanExportResult.SUCCESS


@pytest.mark.parametrize(
    ("bound", "value", "name", "text"),
    [
        ("MOST_WAITING_BYTES", SOME, "s", LONG),
        ("MOST_WAITING_BYTES", SOME, LONG, "x"),
        ("MOST_WAITING", 9, "s", "x"),
    ],
)
def test_spans_that_wait_for_an_exporter_are_bounded_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, name: str, text: str
) -> None:
    """In bytes and in number: 65,536 spans of 100 kB could wait for a dead collector, uncounted."""
    monkeypatch.setattr(exporters_module, bound, value)
    monkeypatch.setattr(exporters_module, "_BATCH", 3)
    hangs = _Hangs()
    with RunTrace("r", tmp_path, exporters=[hangs]) as run:
        for number in range(30):
            run.record_span(name, number, number, {"text": f"{number}{text}"})
            run.flush()
        assert len(run.problems) == 1
        assert "spans for exporter _Hangs: " in run.problems[0]
        assert "dropped: it takes them more slowly" in run.problems[0]
        lost = int(run.problems[0].split(": ")[1].split()[0])
        hangs.go_on.set()
    assert hangs.got + lost == 30
    assert hangs.got == 9


def test_what_an_exporter_took_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are for what waits."""
    monkeypatch.setattr(exporters_module, "MOST_WAITING", 9)
    monkeypatch.setattr(exporters_module, "_BATCH", 3)
    quick = _Hangs()
    quick.go_on.set()
    with RunTrace("r", tmp_path, exporters=[quick]) as run:
        for number in range(30):
            _span(run, number)
            run.flush()
            run._exporters._processors[0].force_flush()
    assert (quick.got, run.problems) == (30, [])


def test_a_span_keeps_no_task_alive(tmp_path: Path) -> None:
    """A task has its result, and would have it for as long as its span waits."""

    async def one(run: RunTrace) -> None:
        with run.span("outer"), run.span("inner"):
            await asyncio.sleep(0)

    async def two(run: RunTrace) -> weakref.ref[asyncio.Task[None]]:
        tasks = [asyncio.create_task(one(run), name=f"t{n}") for n in range(2)]
        await asyncio.gather(*tasks)
        return weakref.ref(tasks[0])

    with RunTrace("r", tmp_path) as run, run._writer._draining:
        kept = asyncio.run(two(run))
        gc.collect()
        assert kept() is None
    assert run.problems == []
    assert run.trace_path is not None
    assert written(run.trace_path)["inner"] == 2


@pytest.mark.parametrize(
    ("value", "least"),
    [
        (LONG, 100_000),
        ({"a": [{"b": LONG}]}, 100_000),
        ([*range(10_000)], 300_000),
        ([["x" * 1000] for _ in range(500)], 500_000),
        (["x"] * 100 + [LONG], 100_000),
        (b"x" * 1000, 1000),
        (Reply("m", LONG), 100_000),
        (type("Text", (str,), {"__sizeof__": None})(LONG), 100_000),
    ],
)
def test_what_a_value_holds_is_known_about(value: object, least: int) -> None:
    """From a part of a long list, at most a few times too much."""
    assert least <= held_bytes(value) <= 5 * least


def test_a_value_that_holds_itself_or_whose_code_fails_has_some_size() -> None:
    """Nothing is raised, and nothing takes long."""
    endless: list[Any] = []
    endless += [endless] * 1000
    broken = type("Broken", (list,), {"__len__": lambda _: 1 // 0})()
    for value in (endless, broken, object(), None, RunTrace):
        assert held_bytes(value) >= 0
