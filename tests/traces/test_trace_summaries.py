"""A trace's file read again: sums that add up, waits with their causes, advice, cuts, and merged files."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shim.cli import main
from traces import RequestLine, RunLine, append_run
from traces.reading.merged import merged, started_at
from traces.reading.spans_of import spans_of
from traces.reading.stored_events import BadTrace, TraceFile
from traces.reading.summary import summarise

Event = dict[str, Any]


def slice_of(kind: str, begin: float, end: float, name: str = "", **args: Any) -> Event:
    """A slice, in seconds."""
    given = {key.replace("__", "."): value for key, value in args.items()}
    return {
        "ph": "X", "cat": kind, "name": name or kind, "pid": 1, "tid": 1,
        "ts": begin * 1e6, "dur": (end - begin) * 1e6, "args": given,
    }  # fmt: skip


def request(
    number: int,
    model: str,
    times: tuple[float, float, float, float, float],
    load: str | None = None,
) -> list[Event]:
    """A request that asked, was granted, began its prompt, its first token, and ended."""
    asked, granted, prompt, first, end = times
    key = {"keepwarm__request__id": f"r{number}"}
    more: dict[str, Any] = (
        {"keepwarm__waited_for_load": load, "keepwarm__cold": True} if load else {}
    )
    queue = {"cat": "queue", "name": "queue", "pid": 3, "id2": {"local": str(number)}}
    return [
        {**queue, "ph": "b", "ts": asked * 1e6, "args": {"keepwarm.request.id": f"r{number}"}},
        {**queue, "ph": "e", "ts": granted * 1e6},
        slice_of(
            "request", granted, end, gen_ai__request__model=model,
            gen_ai__usage__output_tokens=10, keepwarm__predicted_ms=(end - first) * 1e3, **key, **more,
        ),
        slice_of("prompt_evaluation", prompt, first, **key),
        slice_of("generate", first, end, **key),
    ]  # fmt: skip


def load(model: str, number: int, begin: float, end: float, storage: str = "staged") -> Event:
    """A load of a model."""
    return slice_of(
        "model_load", begin, end, keepwarm__load__id=f"{model}/{number}", gen_ai__request__model=model,
        keepwarm__reason="requested", keepwarm__storage=storage,
    )  # fmt: skip


def evict(model: str, begin: float, end: float) -> Event:
    """An eviction of a model."""
    return slice_of(
        "evict", begin, end, gen_ai__request__model=model, keepwarm__reason="evicted for b"
    )


STORY = [
    slice_of("run", 0, 20, keepwarm__run__started="2026-11-28T20:00:00+00:00"),
    load("a", 1, 0, 4),
    *request(1, "a", (0, 4, 4, 5, 8), "a/1"),
    *request(2, "a", (6, 8, 8, 9, 10)),
    load("b", 1, 7, 9),
    evict("a", 10, 11),
    load("a", 2, 11, 15),
    *request(3, "a", (10, 15, 15, 16, 18), "a/2"),
]


def write(file: Path, events: list[Event], end: str = "\n]\n") -> Path:
    """A file as keepwarm writes it."""
    file.write_text("[\n" + ",\n".join(map(json.dumps, events)) + end, "utf-8")
    return file


def test_the_parts_add_up_to_the_wall_time() -> None:
    """Each moment counts once; a load beside an answer is hidden."""
    summary = summarise(spans_of(STORY))
    parts = [
        summary.generate_s,
        summary.prompt_s,
        summary.cold_load_s,
        summary.queue_s,
        summary.harness_s,
    ]
    assert parts == pytest.approx([3 + 1 + 2, 1 + 1 + 1, 4 + 4, 1, 2])
    assert sum(parts) == pytest.approx(summary.wall_s)
    assert summary.hidden_load_s == pytest.approx(2)


def test_an_answer_of_one_token_says_nothing_of_the_speed() -> None:
    """Its engine counts from its first token on: a microsecond, and a million tokens a second."""
    short = request(4, "a", (18, 18, 18, 18.1, 18.100001))
    for event in short:
        if event.get("cat") == "request":
            event["args"]["gen_ai.usage.output_tokens"] = 1
    run = STORY[0]
    assert summarise(spans_of([run, *short])).models["a"].tokens_per_s is None
    assert summarise(spans_of([*STORY, *short])).models["a"].tokens_per_s == pytest.approx(30 / 6)


def test_waits_that_would_be_said_to_take_no_time_are_not_told() -> None:
    """Each request waits for the keeper's answer, a millisecond or four."""
    events = [
        e for n, s in enumerate((0.0049, 0.0051)) for e in request(n, "a", (1, 1 + s, 2, 3, 4))
    ]
    waits = summarise(spans_of([STORY[0], *events])).waits
    assert [one.request for one in waits] == ["r1"]


def test_models_waits_and_regrets_are_told() -> None:
    """A wait names its load, or a slot; an eviction that was undone soon is regretted."""
    summary = summarise(spans_of(STORY))
    model = summary.models["a"]
    assert (model.requests, model.cold, model.loads, model.load_s) == (3, 2, 2, 8)
    assert model.tokens_per_s == pytest.approx(30 / 6)
    assert model.ttft_p50_s == pytest.approx(5)
    assert model.ttft_p95_s == pytest.approx(5.9)
    assert summary.models["b"].requests == 0
    assert [(w.request, w.waited_s) for w in summary.waits] == [("r3", 5), ("r1", 4), ("r2", 2)]
    assert summary.waits[0].cause == "the load of a (4.00 s, staged, requested)"
    assert summary.waits[2].cause == "what the trace does not say"
    assert (summary.evictions, summary.regretted) == (1, 1)
    assert summarise(spans_of(STORY), regretted_within_s=0.0).regretted == 1
    late = [e if e["cat"] != "evict" else evict("a", 1, 2) for e in STORY if "cat" in e]
    assert summarise(spans_of(late), regretted_within_s=5.0).regretted == 0


def test_an_empty_trace_has_no_time() -> None:
    """Neither a division by zero nor a made-up figure."""
    summary = summarise(spans_of([{"ph": "M", "name": "process_name"}, {"ts": "x"}, {"ts": True}]))
    assert (summary.wall_s, summary.models, summary.advice) == (0.0, {}, ())


def test_a_cut_file_is_read_up_to_the_cut(tmp_path: Path) -> None:
    """A kill leaves no bracket, a full disk half a line, half a gzip; a whole file is not called cut."""
    whole = TraceFile(write(tmp_path / "whole.json", STORY))
    assert (len(list(whole.events())), whole.cut) == (len(STORY), 0)
    killed = TraceFile(write(tmp_path / "killed.json", STORY, ""))
    assert (len(list(killed.events())), killed.cut) == (len(STORY), len(STORY) + 1)
    data = whole.file.read_bytes()
    half = tmp_path / "half.json"
    half.write_bytes(data[: len(data) // 2])
    cut = TraceFile(half)
    assert 0 < len(list(cut.events())) < len(STORY)
    assert cut.cut > 1
    packed = tmp_path / "packed.json.gz"
    packed.write_bytes(gzip.compress(data)[:-40])
    broken = TraceFile(packed)
    assert list(broken.events()) == STORY[: len(list(TraceFile(packed).events()))]
    assert list(TraceFile(_packed(tmp_path, data)).events()) == STORY


def _packed(folder: Path, data: bytes) -> Path:
    file = folder / "good.json.gz"
    file.write_bytes(gzip.compress(data))
    return file


@pytest.mark.parametrize(
    "text", ["", "dear diary", "[1, 2]", '{"a": 1}', '{"traceEvents": 3}', "[\n{}\nrubbish\n{}\n]"]
)
def test_what_is_no_trace_is_named_with_its_line(tmp_path: Path, text: str) -> None:
    """The error says which line is wrong; nothing is guessed."""
    file = tmp_path / "x.json"
    file.write_text(text, "utf-8")
    with pytest.raises(BadTrace, match="line"):
        list(TraceFile(file).events())
    result = CliRunner().invoke(main, ["trace", "summary", str(file)])
    assert result.exit_code == 2
    assert "is no trace" in result.stderr


def test_other_programs_traces_are_read_where_they_are_small(tmp_path: Path) -> None:
    """One document with `traceEvents`, or one line."""
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"traceEvents": STORY}), "utf-8")
    assert list(TraceFile(file).events()) == STORY
    file.write_text(json.dumps(STORY), "utf-8")
    assert list(TraceFile(file).events()) == STORY


def test_merged_files_are_on_one_clock_and_their_numbers_do_not_meet() -> None:
    """The second run began a minute later by the time of day."""
    later = [dict(event) for event in STORY]
    later[0] = slice_of("run", 0, 20, keepwarm__run__started="2026-11-28T20:01:00+00:00")
    clocks = [started_at(STORY), started_at(later)]
    found = list(merged([STORY, later], clocks))
    assert len(found) == 2 * len(STORY)
    assert found[len(STORY)]["ts"] == 60e6
    assert {event["pid"] for event in found} == {1, 3, 1001, 1003}
    assert started_at([]) is None
    # Whichever comes first, the wall time is from the begin of one to the end of the other.
    walls = [summarise(spans_of(events)).wall_s for events in (found, found[::-1])]
    assert walls == [80.0, 80.0]


def test_the_commands_print_figures_and_json(tmp_path: Path) -> None:
    """summary, diff and merge; a file that is there is not overwritten, and a cut one is said."""
    file = write(tmp_path / "run.json", STORY)
    run = CliRunner().invoke(main, ["trace", "summary", str(file), "--json"])
    assert json.loads(run.stdout)["evictions"] == 1
    shown = CliRunner().invoke(main, ["trace", "summary", str(file)])
    assert "pin a: 40% of the wall time is its reloads" in shown.stdout
    shown = CliRunner().invoke(main, ["trace", "diff", str(file), str(file)])
    assert "loads of a" in shown.stdout
    output, other = tmp_path / "both.json", write(tmp_path / "other.json", STORY)
    made = CliRunner().invoke(main, ["trace", "merge", str(file), str(other), "-o", str(output)])
    assert made.exit_code == 0, made.stderr
    assert len(json.loads(output.read_text("utf-8"))) == 2 * len(STORY)
    again = CliRunner().invoke(main, ["trace", "merge", str(file), "-o", str(output)])
    assert (again.exit_code, "there already" in again.stderr) == (2, True)
    cut = write(tmp_path / "cut.json", STORY, "")
    said = CliRunner().invoke(main, ["trace", "summary", str(cut)])
    assert (said.exit_code, "was cut in line" in said.stderr) == (0, True)


def test_a_load_on_two_devices_is_one_load() -> None:
    """Its seconds count once, and its bytes are those of both."""
    parts = [dict(load("a", 1, 0, 4)), dict(load("a", 1, 0, 4)), dict(load("b", 1, 4, 5))]
    for part in parts:
        part["args"] = {**part["args"], "keepwarm.bytes": 8}
    spans = spans_of([slice_of("run", 0, 20), *parts])
    assert [(one.model, one.bytes) for one in spans.loads] == [("a", 16), ("b", 8)]
    assert summarise(spans).models["a"].load_s == 4.0


def test_the_summary_leads_to_a_simulation_of_the_run(tmp_path: Path) -> None:
    """The command that it prints runs, with the models that it wrote and the requests of the run."""
    story = [dict(event) for event in STORY]
    for event in story:
        if event.get("cat") == "model_load":
            event["args"] = {**event["args"], "keepwarm.bytes": 8_000_000_000}
    file, models = write(tmp_path / "run.json", story), tmp_path / "my models.json"
    place = ["trace", "summary", str(file), "--folder", str(tmp_path)]
    first = CliRunner().invoke(main, place).stdout.splitlines()[-2:]
    assert shlex.split(first[0])[1:4] == ["trace", "summary", str(file)]
    said = CliRunner().invoke(main, [*place, "--models-out", str(models)])
    assert said.exit_code == 0, said.stderr
    line = shlex.split(said.stdout.splitlines()[-1])
    assert line[:2] == ["keepwarm", "simulate"]
    requests = tuple(
        RequestLine(
            "r", model, "", "chat", remote=False, cold=False, arrival_s=at, waited_s=0.0, load_s=0.0,
            ttft_s=None, total_s=1.0, prompt_tokens=1, cached_tokens=0, output_tokens=1,
            tokens_per_s=None, finish_reason=None, error=None,
        )
        for at, model in ((0.0, "a"), (1.0, "b"))
    )  # fmt: skip
    started = "2026-11-28T20:00:00+00:00"
    append_run(tmp_path / "runs.jsonl", RunLine("x", "s", started, 2.0, "ok", requests=requests))
    replay = CliRunner().invoke(main, [*line[1:-1], "8GB", "--json"])
    assert replay.exit_code == 0, replay.output
    assert json.loads(replay.stdout)
