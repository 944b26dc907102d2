"""Runs as awkward as they come, made by chance: Perfetto takes each trace as it was written."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.perfetto import assert_sound, query
from tests.traces.support import MS, evict, load, now, request
from traces import PREFETCH, CounterSample, Incident, RunTrace, names

MODELS = [
    "m",
    "ends with a backslash\\",
    'a "quoted" one',
    "emoji 🎉 文字",
    "/with/slashes",
    "two\nlines",
    *(f"engine-{number}" for number in range(6)),
]
DEVICES = ("host", "cuda:0")
ENDINGS: tuple[dict[str, str], ...] = (
    *({},) * 3,
    {"error": "Cancelled"},
    {"error": "EngineDied"},
    {"finish_reason": "length"},
)
INCIDENTS = (
    names.DENIED,
    names.DIED,
    names.LOW,
    names.READ_AHEAD,
    names.PREEMPTED,
    names.CORRECTED,
)


def _request(run: RunTrace, rng: random.Random, number: int, start: int) -> None:
    """A request on one of four slots; it may overlap another, fail, be never granted, or take no time."""
    times: list[int | None] = list(
        itertools.accumulate([0] + [rng.randrange(30) * MS for _ in range(4)])
    )
    known = rng.choice((5, 5, 5, 4, 3, 1))
    granted, sent, first = (
        start + at if at is not None and index < known else None
        for index, at in enumerate(times[1:4], 1)
    )
    cold = (
        {"waited_for_load": f"l{rng.randrange(number + 1)}", "cold": True}
        if rng.random() < 0.3
        else {}
    )
    evicted = {"keepwarm.evicted": f"e{rng.randrange(number + 1)}"} if rng.random() < 0.2 else {}
    run.request(
        request(
            f"r{number}",
            start,
            model=rng.choice(MODELS),
            slot=rng.choice((0, 1, 2, 3, None)),
            remote=rng.random() < 0.1,
            granted_ns=granted,
            sent_ns=sent if granted else None,
            first_token_ns=first if sent and granted else None,
            end_ns=start + (times[4] or 0),
            cached_tokens=rng.choice((None, 0, 5)),
            attributes=evicted,
            **cold,
            **rng.choice(ENDINGS),
        )
    )


def _awkward(run: RunTrace, seed: int, size: int) -> None:
    rng, start = random.Random(seed), now() - size * 20 * MS
    for number in range(size):
        at = start + rng.randrange(size * 20) * MS + rng.randrange(3)
        reason = rng.choice((PREFETCH, "asked for"))
        phases = (("spawn", at, at + MS), ("weights", at + MS, at + 3 * MS)) if number % 2 else ()
        for device in DEVICES[: rng.randrange(1, 3)]:
            places = {"device": device, "model": rng.choice(MODELS)}
            run.load(
                load(f"l{number}", at, ms=rng.randrange(40), reason=reason, phases=phases, **places)
            )
            run.evict(evict(f"e{number}", at - 17, ms=rng.randrange(9), **places))
        _request(run, rng, number, start + rng.randrange(size * 20) * MS)
        kind, until = rng.choice(INCIDENTS), at + rng.randrange(2) * MS
        run.incident(Incident(kind, at, until, rng.choice(MODELS), rng.choice(("", *DEVICES))))
        run.counter(
            CounterSample(at, rng.choice(DEVICES), {rng.choice(MODELS): number}, number, 10**6)
        )
        chain = {"keepwarm.chain": f"item {number % 5}"}
        run.record_span(rng.choice(MODELS), at, at + rng.randrange(5) * MS, chain)
        if rng.random() < 0.05:
            with pytest.raises(ZeroDivisionError), run.span("fails", model=rng.choice(MODELS)):
                1 / 0  # noqa: B018


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_trace_is_sound(tmp_path: Path, seed: int) -> None:
    """No error, no loss, counts as written, every lane nested, every arrow bound."""
    with RunTrace("awkward", tmp_path, service='a\\ "b" 🎉') as run:
        _awkward(run, seed, 70)
    assert run.problems == []
    assert run.trace_path is not None
    slices = assert_sound(run.trace_path)
    assert Counter(row["category"] for row in slices)[names.REQUEST] == 70


@pytest.mark.full
def test_a_large_awkward_run_is_sound_in_all_its_parts(tmp_path: Path) -> None:
    """The same with ten thousand of each, over several files."""
    with RunTrace("large", tmp_path, max_bytes=4_000_000) as run:
        for seed in range(20):
            _awkward(run, seed, 500)
            run.flush()
    assert run.problems == []
    parts = sorted(tmp_path.glob("*.trace.json"))
    assert len(parts) > 3
    assert sum(len(assert_sound(part)) for part in parts) > 50_000


def test_a_check_that_finds_nothing_would_find_something(tmp_path: Path) -> None:
    """The check that these tests stand on fails for a lost slice and for an arrow without an end."""
    slices = [
        '{"ph":"X","name":"a","cat":"c","ts":1,"dur":2,"pid":1,"tid":2}',
        '{"ph":"X","name":"b","cat":"c","ts":2.5,"dur":2,"pid":1,"tid":2}',
    ]
    arrow = '{"ph":"s","cat":"flow","name":"n","id":1,"ts":1.5,"pid":1,"tid":2}'
    for number, events in enumerate((slices, [slices[0], arrow])):
        path = tmp_path / f"{number}.json"
        path.write_text("[\n" + ",\n".join(events) + "\n]\n")
        with pytest.raises(AssertionError):
            assert_sound(path)


def test_groups_have_numbers_in_the_order_of_their_first_use(tmp_path: Path) -> None:
    """Run, devices, engines, remotes: also with twelve engines, whose names would sort otherwise."""
    with RunTrace("order", tmp_path) as run:
        at = now()
        run.request(request("far", at, model="far", remote=True))
        for number in reversed(range(12)):
            run.request(request(f"r{number}", at, model=f"m{number}"))
        for device in ("host", "cuda:0"):
            run.load(load(device, at, device=device))
    assert run.trace_path is not None
    rows = query(run.trace_path, "select name, pid from process where name is not null")
    ordered = sorted((row["name"][0], row["pid"], row["name"]) for row in rows)
    assert [name for _, _, name in ordered] == [
        "1 run keepwarm order",
        "2 device host",
        "2 device cuda:0",
        *(f"3 engine m{number} (llama.cpp)" for number in reversed(range(12))),
        "4 remote far (llama.cpp)",
    ]
