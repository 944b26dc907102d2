"""What the picture tells beside slices: rates, counters, how long models stayed, and what led to what."""

from __future__ import annotations

from pathlib import Path

from tests.perfetto import ASYNC, COUNTERS, FLOWS, PROBLEMS, SLICES, Row, query_many
from tests.traces.support import MS, evict, load, now, request
from traces import PREFETCH, CounterSample, Incident, RunTrace, names

ENGINE = "3 engine m (llama.cpp)"


def _read(run: RunTrace, *queries: str) -> list[list[Row]]:
    assert run.problems == []
    assert run.trace_path is not None
    problems, *answers = query_many(run.trace_path, [PROBLEMS, *queries])
    assert problems == []
    return answers


def _counter(rows: list[Row], name: str) -> list[tuple[float, float]]:
    """The values of one counter, with their times in milliseconds since its first."""
    found = [row for row in rows if row["name"] == name]
    return [((row["ts"] - found[0]["ts"]) / MS, row["value"]) for row in found]


def test_prompt_and_answer_say_their_tokens_and_their_speed(tmp_path: Path) -> None:
    """The engine's own figures where there are any, else the slice's length; cached tokens cost no time."""
    with RunTrace("speed", tmp_path) as run:
        at = now()
        figures = {"prompt_tokens": 520, "cached_tokens": 500, "prompt_ms": 10.0}
        run.request(request("r1", at, **figures, completion_tokens=9, predicted_ms=1000.0))
        run.request(request("r2", at + 100 * MS))
        none = dict.fromkeys(("prompt_tokens", "completion_tokens"))
        run.request(request("r3", at + 200 * MS, **none))
        run.request(request("r4", at + 300 * MS, completion_tokens=1, predicted_ms=0.001))
    (slices,) = _read(run, SLICES)
    inner = [row["name"] for row in slices if row["depth"] == 1 and row["name"] != "admit"]
    assert inner == [
        "prompt_evaluation 520 tokens, 500 cached, 2000/s",
        "generate 9 tokens, 9.0/s",
        "prompt_evaluation 12 tokens, 600/s",
        "generate 6 tokens, 200/s",
        "prompt_evaluation",
        "generate",
        "prompt_evaluation 12 tokens, 600/s",
        "generate 1 token",
    ]


def test_overlapping_requests_are_seen_in_busy_slots_and_the_queue(tmp_path: Path) -> None:
    """Continuous batching: two slots at once, a third request in the queue, and each slot's tokens/s."""
    with RunTrace("batch", tmp_path) as run:
        at = now()
        # Recorded at their ends, so the first to come is the last to be told.
        run.request(request("b", at + 20 * MS, slot=1))
        run.request(request("c", at + 30 * MS, slot=1, **_times(at, 81, 82, 90, 100)))
        run.request(request("a", at, slot=0, **_times(at, 10, 11, 31, 120)))
    (counters,) = _read(run, COUNTERS)
    assert {row["process"] for row in counters} == {ENGINE}
    assert _counter(counters, "busy slots") == [(0, 1), (20, 2), (71, 2), (90, 1), (110, 0)]
    assert _counter(counters, "queue depth") == [(0, 1), (10, 0), (20, 1), (30, 1), (81, 0)]
    rates = {row["name"] for row in counters if "tokens" in row["name"]}
    assert rates == {"tokens/s slot 0", "tokens/s slot 1"}
    assert [value for _, value in _counter(counters, "tokens/s slot 1")] == [200, 0, 600, 0]


def _times(at: int, *ms: int) -> dict[str, int]:
    keys = ("granted_ns", "sent_ns", "first_token_ns", "end_ns")
    return {key: at + value * MS for key, value in zip(keys, ms, strict=True)}


def test_a_model_is_drawn_as_long_as_it_stays(tmp_path: Path) -> None:
    """From its load to its eviction or the run's end, with the requests that it served."""
    with RunTrace("stays", tmp_path) as run:
        at = now() - 2000 * MS
        # The eviction is told before the load that it undoes: the order does not matter.
        run.evict(evict("l1/end", at + 1100 * MS, model="m"))
        run.load(load("l1", at, ms=100))
        for number in range(3):
            served = {"keepwarm.engine.load": "l1"}
            run.request(request(f"r{number}", at + (200 + number * 100) * MS, attributes=served))
        run.load(load("l2", at + 1200 * MS, ms=100, model="other"))
        run.request(request("r", at + 1150 * MS, model="other", waited_for_load="l2"))
    asynchronous, slices = _read(run, ASYNC, SLICES)
    stays = [(row["name"], row["dur"]) for row in asynchronous if " resident" in row["name"]]
    assert stays[0] == ("m resident 1.0 s, 3 requests", 1000 * MS)
    assert stays[1][0].startswith("other resident ")
    assert stays[1][0].endswith(", 1 request")
    end = max(row["ts"] + row["dur"] for row in slices if row["name"] == "run")
    other = next(row for row in asynchronous if row["name"].startswith("other resident"))
    assert other["ts"] + other["dur"] == end


def test_arrows_lead_from_a_cause_to_what_came_of_it(tmp_path: Path) -> None:
    """A wait to its load, the load to the request, an eviction to the request that wanted its bytes."""
    with RunTrace("causes", tmp_path) as run:
        at = now()
        caused = {"keepwarm.evicted": "e1 e2"}
        cold = {"waited_for_load": "l1", **_times(at, 80, 81, 100, 150)}
        run.request(request("r1", at, attributes=caused, **cold))
        run.evict(evict("e1", at + 1 * MS))
        run.evict(evict("e2", at + 1 * MS, model="older"))
        run.load(load("l1", at + 6 * MS, ms=70))
        run.load(load("l2", at + 20 * MS, ms=30, model="next", reason=PREFETCH))
        run.request(request("r2", at + 160 * MS, model="next"))
    flows, slices = _read(run, FLOWS, SLICES)
    assert sorted((row["flow"], row["source"], row["target"]) for row in flows) == [
        ("evicted for", "evict old", "request"),
        ("evicted for", "evict older", "request"),
        ("load", "model_load m", "request"),
        ("load", "model_load next", "request"),
        ("waits for", "waits for load l1", "model_load m"),
    ]
    waits = [(row["process"], row["lane"]) for row in slices if row["category"] == "wait"]
    assert waits == [(ENGINE, "waits for a load")]


def test_spans_of_one_chain_are_joined_in_the_order_of_their_ends(tmp_path: Path) -> None:
    """Stage to stage for each item, though the items' stages overlap, and not between items."""
    with RunTrace("chains", tmp_path) as run:
        at = now()
        for ms, name, item in ((0, "read", 1), (5, "read", 2), (20, "judge", 1), (25, "judge", 2)):
            run.record_span(
                f"{name} {item}",
                at + ms * MS,
                at + (ms + 10) * MS,
                {"keepwarm.chain": f"item {item}"},
            )
    (flows,) = _read(run, FLOWS)
    assert [(row["source"], row["target"]) for row in flows] == [
        ("read 1", "judge 1"),
        ("read 2", "judge 2"),
    ]


def test_a_request_costs_less_than_two_kilobytes(tmp_path: Path) -> None:
    """With its queue, its parts, its counters, and names as long as real ones."""
    with RunTrace("size", tmp_path) as run:
        for number in range(200):
            figures = {"prompt_ms": 19.123, "predicted_ms": 30.456, "cached_tokens": 500}
            served = {"keepwarm.engine.load": "3f2a9c81d7/12"}
            names = {"model": "writer-of-letters-7b", "slot": number % 4, "attributes": served}
            run.request(request(f"123456-{number}", now() + number * 20 * MS, **names, **figures))
    assert run.trace_path is not None
    assert run.trace_path.stat().st_size < 200 * 2048


def test_a_loads_phases_lie_within_it_and_its_arrow_leaves_the_load(tmp_path: Path) -> None:
    """Spawn to buffers, one after another; an eviction's saving of KV state likewise."""
    with RunTrace("phases", tmp_path) as run:
        at = now()
        begins = [("spawn", 0), ("header and vocabulary", 20), ("weights", 30), ("buffers", 90)]
        ends = [ms for _, ms in begins[1:]] + [100]
        phases = tuple(
            (name, at + begin * MS, at + end * MS)
            for (name, begin), end in zip(begins, ends, strict=True)
        )
        run.load(load("l1", at, ms=100, phases=phases))
        leaves = (("save KV", at, at + 4 * MS), ("end process", at + 4 * MS, at + 5 * MS))
        run.evict(evict("e1", at, ms=5, phases=leaves))
        cold = {"waited_for_load": "l1", **_times(at, 105, 106, 120, 150)}
        run.request(request("r1", at - 5 * MS, attributes={"keepwarm.evicted": "e1"}, **cold))
    slices, flows = _read(run, SLICES, FLOWS)
    inner = [row["name"] for row in slices if row["depth"] == 1 and "device" in row["process"]]
    assert inner == [
        "spawn",
        "save KV",
        "end process",
        "header and vocabulary",
        "weights",
        "buffers",
    ]
    assert sorted((row["source"], row["target"]) for row in flows) == [
        ("evict old", "request"),
        ("model_load m", "request"),
        ("waits for load l1", "model_load m"),
    ]


def test_what_else_happened_is_there_once_with_its_figures(tmp_path: Path) -> None:
    """Reading ahead and low memory at their device; denials, deaths and the rest at the run."""
    with RunTrace("incidents", tmp_path) as run:
        at = now()
        found = [
            Incident(names.READ_AHEAD, at, at + 30 * MS, "m", "host", {names.READ_BYTES: 7}),
            Incident(names.LOW, at, at, device="host", attributes={"keepwarm.free_bytes": 5}),
            Incident(names.DENIED, at, at, "m", attributes={names.DETAIL: "DoesNotFit: no"}),
            Incident(names.DIED, at, at, "m"),
            Incident(names.PREEMPTED, at + 1, at + 1, "m"),
        ]
        for incident in (*found, *found):
            run.incident(incident)
    (slices,) = _read(run, SLICES)
    assert sorted((row["process"][0], row["lane"], row["name"], row["dur"]) for row in slices)[
        1:
    ] == [
        ("1", "what happened", "denied m", 0),
        ("1", "what happened", "died m", 0),
        ("1", "what happened", "preempted m", 0),
        ("2", "events", "low_memory", 0),
        ("2", "read ahead", "read_ahead m", 30 * MS),
    ]


def test_a_devices_books_are_drawn_as_far_as_they_are_known(tmp_path: Path) -> None:
    """Free, limit, reserved, protected, ceiling and what the device itself has free."""
    with RunTrace("books", tmp_path) as run:
        run.counter(CounterSample(now(), "cuda:0", {"m": 4}, 6, 10, 4, 3, 9, 5))
        run.counter(CounterSample(now(), "host", {}, 1, 2))
    (counters,) = _read(run, COUNTERS)
    assert {(row["process"][9:], row["name"], row["value"]) for row in counters} == {
        ("cuda:0", "resident bytes m", 4),
        ("cuda:0", "device bytes free", 6),
        ("cuda:0", "device bytes limit", 10),
        ("cuda:0", "device bytes reserved", 4),
        ("cuda:0", "device bytes protected", 3),
        ("cuda:0", "device bytes ceiling", 9),
        ("cuda:0", "device bytes measured free", 5),
        ("host", "device bytes free", 1),
        ("host", "device bytes limit", 2),
    }
