"""What Perfetto itself makes of a run's trace. Every count is compared with what was recorded."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import perfetto
from tests.perfetto import ASYNC, COUNTERS, FLOWS, PROBLEMS, SLICES, Row, query_many
from tests.traces.support import MS, evict, load, now, request, written
from traces import PREFETCH, CounterSample, RunTrace, current_run
from traces.chrome.sql import SqlError

NASTY = [
    "ends with a backslash\\",
    "two at the end\\\\",
    'a "quoted" name',
    'ends with both "\\',
    "line\nbreak\ttab\rreturn",
    "nul\x00 bell\x07 delete\x7f",
    "emoji 🎉 and 文字",
    "lone \ud800 surrogate",
    "\ude00\ud83d",
    "pair \ud83d\ude00",
    "\\u0041 \\n \\",
    "}],{",
    " ",
    "",
]


def _read(path: Path, *more: str) -> list[list[Row]]:
    """The answers to SLICES and then `more`; fails when the importer counted any problem."""
    problems, *answers = query_many(path, [PROBLEMS, SLICES, *more])
    assert problems == []
    return answers


def _assert_complete(path: Path, slices: list[Row]) -> None:
    assert Counter(row["name"] for row in slices) == written(path)


def test_every_slice_flow_counter_and_queue_arrives_with_its_name_and_lane(tmp_path: Path) -> None:
    """A cold and a warm request read as DESIGN.md says: lanes, nesting, arrows, counters, queues."""
    with RunTrace("main", tmp_path, service="demo") as run:
        start = now()
        with run.span("produce", attempt=1):
            run.evict(evict("e1", start, for_model="m"))
            run.load(load("l1", start + 5 * MS, ms=50, storage="cold"))
            waited = {"waited_for_load": "l1", "cold": True}
            times = {"granted_ns": 55, "sent_ns": 56, "first_token_ns": 70, "end_ns": 90}
            at = {name: start + ms * MS for name, ms in times.items()}
            run.request(request("r1", start, **at, **waited))
        run.request(request("r2", start + 100 * MS))
        run.counter(CounterSample(start, "host", {"old": 1000}, 500, 1500))
        run.counter(CounterSample(start + 55 * MS, "host", {"m": 1000}, 500, 1500))
    assert run.problems == []
    assert run.trace_path is not None
    slices, queues, flows, counters = _read(run.trace_path, ASYNC, FLOWS, COUNTERS)
    _assert_complete(run.trace_path, slices)
    assert Counter((row["process"], row["lane"], row["name"], row["depth"]) for row in slices) == {
        ("1 run demo main", "run", "run", 0): 1,
        ("1 run demo main", "stages", "produce", 0): 1,
        ("2 device host", "loads and evictions", "evict old", 0): 1,
        ("2 device host", "loads and evictions", "model_load m", 0): 1,
        ("3 engine m (llama.cpp)", "slot 0", "request", 0): 2,
        ("3 engine m (llama.cpp)", "slot 0", "admit", 1): 2,
        ("3 engine m (llama.cpp)", "slot 0", "prompt_evaluation 12 tokens, 857/s", 1): 1,
        ("3 engine m (llama.cpp)", "slot 0", "prompt_evaluation 12 tokens, 600/s", 1): 1,
        ("3 engine m (llama.cpp)", "slot 0", "generate 6 tokens, 300/s", 1): 1,
        ("3 engine m (llama.cpp)", "slot 0", "generate 6 tokens, 200/s", 1): 1,
        ("3 engine m (llama.cpp)", "waits for a load", "waits for load l1", 0): 1,
    }
    queues = [row for row in queues if row["name"] == "queue"]
    assert [(row["dur"], row["process"]) for row in queues] == [
        (55 * MS, "3 engine m (llama.cpp)"),
        (10 * MS, "3 engine m (llama.cpp)"),
    ]
    assert [(row["source"], row["target"]) for row in flows] == [
        ("waits for load l1", "model_load m"),
        ("model_load m", "request"),
    ]
    counters = [row for row in counters if row["process"] == "2 device host"]
    assert [(row["name"], row["value"]) for row in counters] == [
        ("device bytes free", 500),
        ("device bytes limit", 1500),
        ("resident bytes old", 1000),
        ("device bytes free", 500),
        ("device bytes limit", 1500),
        ("resident bytes m", 1000),
        ("resident bytes old", 0),
    ]


def test_attributes_reach_perfetto(tmp_path: Path) -> None:
    """Storage, bytes, tokens and a decision's summary can be asked for in SQL."""
    with RunTrace("args", tmp_path) as run:
        start = now()
        run.load(load("l1", start, storage="cold", attributes={"victims": ["old", "older"]}))
        run.request(
            request("r1", start, prompt_ms=19.5, attributes={"n": 2**70, "bad": float("nan")})
        )
    assert run.trace_path is not None
    sql = (
        "select s.category as name, a.key, coalesce(a.string_value, a.int_value, a.real_value) as value "
        "from slice s join args a using (arg_set_id) where a.key like 'args.%'"
    )
    _, rows = _read(run.trace_path, sql)
    found = {(row["name"], row["key"].removeprefix("args.")): row["value"] for row in rows}
    assert found["model_load", "keepwarm.storage"] == "cold"
    assert found["model_load", "keepwarm.bytes"] == 1000
    assert found["model_load", "victims"] == '["old", "older"]'
    assert found["request", "gen_ai.usage.input_tokens"] == 12
    assert found["prompt_evaluation", "keepwarm.prompt_ms"] == 19.5
    assert found["request", "n"] == str(2**70)
    assert found["request", "bad"] == "nan"


@pytest.mark.parametrize("name", NASTY)
def test_any_text_survives_as_a_name_a_key_and_a_value(tmp_path: Path, name: str) -> None:
    """A file with backslashes, quotes, control characters or lone surrogates loads, with all slices."""
    with RunTrace("nasty", tmp_path, service=name, record_content=True) as run:
        start = now()
        attributes: dict[str, Any] = {name or "empty": name, "end": "x"}
        with run.span(name, **attributes):
            run.load(load(name, start, model=name, device=name, reason=name, engine=name))
            run.counter(CounterSample(start, name, {name: 7}, 1, 8))
            record = request(
                name, start + 200 * MS, model=name, engine=name, prompt=name, answer=name
            )
            run.request(record)
    assert run.problems == []
    assert run.trace_path is not None
    slices, counters = _read(run.trace_path, COUNTERS)
    assert len(slices) == sum(written(run.trace_path).values()) == 7
    books = [row["value"] for row in counters if row["process"].startswith("2 device")]
    assert books == [1, 8, 7]


def test_plain_names_arrive_letter_by_letter(tmp_path: Path) -> None:
    """What needs no escape is shown as it was given, emoji and joined surrogate pairs included."""
    with RunTrace("plain", tmp_path) as run:
        for name in ("emoji 🎉 and 文字", 'a "quoted" name', "pair \ud83d\ude00", "lone \ud800 x"):
            with run.span(name):
                pass
    assert run.trace_path is not None
    names = [row["name"] for row in _read(run.trace_path)[0] if row["lane"] == "stages"]
    assert names == ["emoji 🎉 and 文字", 'a "quoted" name', "pair 😀", "lone \ufffd x"]


def test_concurrent_loads_of_one_device_get_lanes_of_their_own(tmp_path: Path) -> None:
    """Loads that overlap, by as little as 1 ns, are all there; touching ones share a lane."""
    with RunTrace("lanes", tmp_path) as run:
        start = now()
        run.load(load("a", start, ms=10))
        run.load(load("b", start + 10 * MS, ms=10))
        run.load(load("c", start + 20 * MS - 1, ms=10))
        run.evict(evict("d", start - 3 * MS, ms=50))
    assert run.trace_path is not None
    (slices,) = _read(run.trace_path)
    _assert_complete(run.trace_path, slices)
    lanes = [row["lane"] for row in slices if row["process"] == "2 device host"]
    assert lanes == [
        "loads and evictions (3)",
        "loads and evictions",
        "loads and evictions",
        "loads and evictions (2)",
    ]


def test_requests_on_one_slot_that_overlap_are_all_there(tmp_path: Path) -> None:
    """A slot that is reported for two requests at once costs no slice."""
    with RunTrace("slots", tmp_path) as run:
        start = now()
        for index in range(6):
            run.request(request(f"r{index}", start + index * 7 * MS, slot=index % 2))
        for index in range(4):
            run.request(request(f"q{index}", start, slot=None, model="far", remote=True))
    assert run.trace_path is not None
    (slices,) = _read(run.trace_path)
    _assert_complete(run.trace_path, slices)
    assert Counter(row["depth"] for row in slices if row["category"] == "generate") == {1: 10}
    remote = {row["lane"] for row in slices if row["process"] == "4 remote far (llama.cpp)"}
    assert remote == {"requests", "requests (2)", "requests (3)", "requests (4)"}


def test_a_load_reported_after_its_request_still_gets_its_arrow(tmp_path: Path) -> None:
    """The order in which the keeper's answer is unpacked does not matter."""
    with RunTrace("late", tmp_path) as run:
        start = now()
        run.request(request("r1", start, waited_for_load="l1"))
        run.load(load("l1", start, ms=9))
        run.load(load("l1", start, ms=9))
    assert run.trace_path is not None
    slices, flows = _read(run.trace_path, FLOWS)
    assert ("model_load m", "request") in [(row["source"], row["target"]) for row in flows]
    assert Counter(row["name"] for row in slices)["model_load m"] == 1


def test_a_prefetch_points_to_its_first_use_only(tmp_path: Path) -> None:
    """A load that no request waited for has one arrow: to the first request that found it there."""
    with RunTrace("prefetch", tmp_path) as run:
        start = now()
        run.load(load("l1", start, ms=5, reason=PREFETCH))
        run.request(request("r1", start + 20 * MS))
        run.request(request("r2", start + 120 * MS))
    assert run.trace_path is not None
    _, flows = _read(run.trace_path, FLOWS)
    assert [(row["source"], row["target_ts"] - row["source_ts"]) for row in flows] == [
        ("model_load m", 30 * MS)
    ]


def test_a_load_and_a_request_of_no_length_still_carry_their_arrow(tmp_path: Path) -> None:
    """Perfetto drops a flow that ends in a slice of 0 ns: both get the one nanosecond they need."""
    with RunTrace("zero", tmp_path) as run:
        at = now()
        run.load(load("l1", at, ms=0))
        times = dict.fromkeys(("granted_ns", "sent_ns", "first_token_ns", "end_ns"), at)
        run.request(request("r1", at, waited_for_load="l1", **times))
    assert run.trace_path is not None
    slices, flows = _read(run.trace_path, FLOWS)
    assert len(flows) == 1
    _assert_complete(run.trace_path, slices)


def test_a_request_that_was_never_granted_has_a_lane_of_its_own(tmp_path: Path) -> None:
    """A denied request is on the trace with its error, off the slots."""
    with RunTrace("denied", tmp_path) as run:
        at = now()
        record = request(
            "r1", at, granted_ns=None, sent_ns=None, first_token_ns=None, error="QueueFull"
        )
        run.request(record)
    assert run.trace_path is not None
    slices, queues = _read(run.trace_path, ASYNC)
    found = {(row["name"], row["lane"]) for row in slices}
    assert found == {("run", "run"), ("request", "not admitted")}
    assert [row["dur"] for row in queues] == [61 * MS]


def test_times_out_of_order_are_clamped_and_cost_no_slice(tmp_path: Path) -> None:
    """Clocks that contradict each other (granted before queued, ended before sent) break nothing."""
    rng = random.Random(7)
    with RunTrace("skewed", tmp_path) as run:
        start = now()
        for index in range(40):
            times = [start + rng.randrange(-MS, MS) for _ in range(4)]
            keys = ("granted_ns", "sent_ns", "first_token_ns", "end_ns")
            run.request(request(f"r{index}", start, **dict(zip(keys, times, strict=True))))
        run.load(load("ancient", start - 10**16, ms=1))
    assert run.problems == []
    assert run.trace_path is not None
    (slices,) = _read(run.trace_path)
    _assert_complete(run.trace_path, slices)
    assert Counter(row["depth"] for row in slices if row["name"] == "request") == {0: 40}


def test_a_run_that_raised_leaves_a_whole_trace(tmp_path: Path) -> None:
    """The exception passes through; the trace shows the stage that failed."""
    run = RunTrace("raised", tmp_path)
    with pytest.raises(ZeroDivisionError), run, run.span("divide"):
        1 / 0  # noqa: B018
    assert run.trace_path is not None
    (slices,) = _read(run.trace_path)
    assert [row["name"] for row in slices] == ["run", "divide"]


def test_a_killed_writers_file_opens_with_all_that_was_recorded(tmp_path: Path) -> None:
    """`kill -9` in the middle of a run costs the run's own slice and nothing that was flushed."""
    code = (
        "import os, signal, sys\n"
        "from tests.traces.support import *\n"
        "from traces import RunTrace\n"
        "with RunTrace('killed', sys.argv[1]) as run:\n"
        "    for i in range(50): run.request(request(f'r{i}', now() + i * 100 * MS))\n"
        "    run.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    (slices,) = _read(tmp_path / "killed.trace.json")
    assert Counter(row["category"] for row in slices) == {
        "request": 50,
        "admit": 50,
        "prompt_evaluation": 50,
        "generate": 50,
    }


def test_a_file_cut_in_the_middle_of_an_event_opens(tmp_path: Path) -> None:
    """A full disk can cut an event: all whole ones before it are there."""
    with RunTrace("cut", tmp_path) as run:
        for index in range(20):
            run.record_span("s", run_start := now() + index * MS, run_start + 1)
    assert run.trace_path is not None
    whole = run.trace_path.read_text()
    cut = tmp_path / "half.trace.json"
    cut.write_text(whole[: whole.rindex('"dur"')])
    (slices,) = _read(cut)
    assert len(slices) == 20


def test_a_gzip_trace_is_smaller_and_says_the_same(tmp_path: Path) -> None:
    """With `gzip` only the compressed file is left, and Perfetto reads it."""
    paths = []
    for gzip in (False, True):
        with RunTrace(f"z{gzip}", tmp_path, gzip=gzip) as run:
            for index in range(200):
                run.request(request(f"r{index}", now() + index * 100 * MS))
        assert run.trace_path is not None
        paths.append(run.trace_path)
    plain, packed = paths
    assert packed.name.endswith(".trace.json.gz")
    assert not packed.with_suffix("").exists()
    assert packed.stat().st_size * 5 < plain.stat().st_size
    assert packed.stat().st_mode & 0o777 == 0o600
    counts = [Counter(row["name"] for row in _read(path)[0]) for path in paths]
    assert counts[0] == counts[1] == written(plain)


def test_twenty_thousand_events_lose_none(tmp_path: Path) -> None:
    """Random loads, evictions, requests and stages of ten models on three devices: every slice arrives."""
    rng = random.Random(11)
    with RunTrace("many", tmp_path) as run:
        start = now()
        for index in range(1500):
            at = start + rng.randrange(10**10)
            device, model = f"cuda:{rng.randrange(3)}", f"m{rng.randrange(10)}"
            run.load(load(f"l{index}", at, ms=rng.randrange(40), device=device, model=model))
            run.evict(evict(f"e{index}", at - 17, ms=rng.randrange(20), device=device))
            run.counter(CounterSample(at, device, {model: index}, index, 10**6))
            changes = {"slot": rng.randrange(4), "model": model, "waited_for_load": f"l{index}"}
            run.request(request(f"r{index}", at, **changes))
            run.record_span("span", at, at + rng.randrange(10**8))
    assert run.problems == []
    assert run.trace_path is not None
    slices, queues, flows, counters = _read(run.trace_path, ASYNC, FLOWS, COUNTERS)
    _assert_complete(run.trace_path, slices)
    assert len(slices) + 2 * len(queues) + 2 * len(flows) + len(counters) > 20_000
    assert Counter(row["name"][:5] for row in queues)["queue"] == 1500
    assert Counter((row["source"][:10], row["target"][:10]) for row in flows) == {
        ("model_load", "request"): 1500,
        ("waits for ", "model_load"): 1500,
    }


def test_times_are_exact_to_the_nanosecond(tmp_path: Path) -> None:
    """Starts and lengths come back as written, also days into a run."""
    rng = random.Random(3)
    day = 86_400 * 10**9
    with RunTrace("exact", tmp_path) as run:
        start = now()
        spans = [(rng.randrange(7 * day), rng.randrange(10**9)) for _ in range(500)]
        for begin, length in spans:
            run.record_span("s", start + begin, start + begin + length)
    assert run.trace_path is not None
    slices = [row for row in _read(run.trace_path)[0] if row["name"] == "s"]
    origin = min(row["ts"] for row in slices) - min(begin for begin, _ in spans)
    assert sorted((row["ts"] - origin, row["dur"]) for row in slices) == sorted(spans)


def test_a_broken_query_or_file_is_an_error_of_the_helper(tmp_path: Path) -> None:
    """The helper that all these tests stand on does not take a refusal for an empty answer."""
    bad = tmp_path / "bad.json"
    bad.write_text('[{"ph":"X","name":"a\\\\","ts":1,"dur":2,"pid":1,"tid":1}]')
    with pytest.raises(SqlError):
        perfetto.query(bad, SLICES)
    good = tmp_path / "good.json"
    good.write_text('[{"ph":"X","name":"a","ts":1,"dur":2,"pid":1,"tid":2}]')
    with pytest.raises(SqlError, match="nope"):
        perfetto.query(good, "select nope from slice")
    overlap = tmp_path / "overlap.json"
    overlap.write_text(
        '[{"ph":"X","name":"a","ts":1,"dur":2,"pid":1,"tid":2},'
        '{"ph":"X","name":"b","ts":2.999,"dur":2,"pid":1,"tid":2}]'
    )
    assert [row["name"] for row in perfetto.query(overlap, PROBLEMS)] == [
        "slice_drop_overlapping_complete_event"
    ]


def test_lanes_are_ordered_run_devices_engines_remotes(tmp_path: Path) -> None:
    """Perfetto sorts processes by name and lanes by tid: both are given out in reading order."""
    with RunTrace("order", tmp_path) as run:
        at = now()
        run.request(request("far", at, model="far", engine="vllm", remote=True))
        run.request(request("b", at, slot=1))
        run.request(request("a", at, slot=0))
        run.load(load("l", at))
    assert current_run() is None
    assert run.trace_path is not None
    (slices,) = _read(run.trace_path)
    ordered = sorted({(row["process"], row["tid"], row["lane"]) for row in slices})
    assert [key for key, _ in itertools.groupby(row[0] for row in ordered)] == [
        "1 run keepwarm order",
        "2 device host",
        "3 engine m (llama.cpp)",
        "4 remote far (vllm)",
    ]
    assert [lane for process, _, lane in ordered if process[0] == "3"] == ["slot 0", "slot 1"]
