"""Order and looking ahead on real llama-server engines, by the times of their loads and leases."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backends.machine.files.page_cache import drop_from_page_cache, resident_fraction
from harness import Pipeline, Stage, StageContext
from shim import DeadlineExceeded, Reply, Shim
from tests.processes import wait_until

pytestmark = pytest.mark.real

BOTH, ONE = "60MB", "30MB"
NO_END: dict[str, Any] = {"extra": {"ignore_eos": True}, "temperature": 0.0}


@contextmanager
def shim_of(files: dict[str, Path], limit: str, **budget: Any) -> Iterator[Shim]:
    """Three models, of which both of the first two, or any one, fit."""
    entries = {"a": "classifier", "b": "producer", "c": "evaluator"}
    config = {
        "budget": {"device": "host", "limit": limit, "reserve": 0, **budget},
        "models": {
            # One thread each: where all cores compute, engines only wait for one another's threads.
            name: {"path": str(files[file]), "context": 1024, "threads": 1}
            for name, file in entries.items()
        },
        "kv": {"enabled": False},
    }
    with Shim(config) as shim:
        yield shim


def loads_since(shim: Shim, since_ns: int) -> list[dict[str, Any]]:
    """The loads of the keeper's history that began since then, oldest first."""
    answer = shim._session.connections.ask(
        "history", since_ns=since_ns, until_ns=time.monotonic_ns()
    )
    rows: list[dict[str, Any]] = [row for row in answer["loads"] if row["start_ns"] >= since_ns]
    return sorted(rows, key=lambda row: int(row["start_ns"]))


def test_the_second_load_is_wholly_inside_the_first_generation(
    tiny_models: dict[str, Path],
) -> None:
    """By the times of lease and last token of the one, and of start and end of the other's load."""
    times: dict[str, int] = {}

    def write(context: StageContext) -> str:
        asked_ns = time.monotonic_ns()
        with context.shim.stream(context.model, "Go on.", max_tokens=700, **NO_END) as stream:
            next(stream)
            # However quick the machine is, the answer does not end before the other model is there.
            assert wait_until(lambda: state(context.shim, "b") == "idle")
            text = "".join(piece.content or "" for piece in stream)
        times["last"] = time.monotonic_ns()
        times["granted"] = asked_ns + int(stream.reply.residency.waited_s * 1e9)
        return text

    def judge(context: StageContext) -> Reply:
        return context.chat("Judge.", max_tokens=2)

    judging = Stage("judge", "b", judge)
    with shim_of(tiny_models, BOTH) as shim:
        began_ns = time.monotonic_ns()
        (item,) = Pipeline([Stage("write", "a", write), judging], shim).run(["once"])
        first, load = loads_since(shim, began_ns)
        prefetch = shim.status()["prefetch"]
    assert (first["model"], load["model"], load["reason"]) == ("a", "b", "prefetch")
    assert first["end_ns"] <= times["granted"] <= load["start_ns"]
    assert load["end_ns"] < times["last"]
    assert not item.result(judging).residency.cold
    assert prefetch["wasted_bytes"] == 0


def test_what_is_planned_and_does_not_fit_is_staged(tiny_models: dict[str, Path]) -> None:
    """Its bytes are left to the models that work; it loads when no declared use needs them."""
    with shim_of(tiny_models, ONE) as shim, shim.plan(["a", "b"]):
        shim.chat("a", "Go on.", max_tokens=2)
        # No request asked for it; the first model has no declared use any more.
        assert wait_until(lambda: state(shim, "b") == "idle")
        assert not shim.chat("b", "Go on.", max_tokens=2).residency.cold


def test_stage_only_reads_the_file_and_the_load_finds_it(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """`prefetch = "stage"`: the page cache holds the file before a request asks for the model."""
    file = Path(shutil.copy(tiny_models["producer"], tmp_path / "producer.gguf"))
    drop_from_page_cache(file)
    files = {**tiny_models, "producer": file}
    with shim_of(files, BOTH, prefetch="stage") as shim, shim.plan(["b"]):
        assert wait_until(lambda: shim.status()["prefetch"]["staging"] is None)
        assert resident_fraction(file) == 1.0
        assert state(shim, "b") == "absent"
        (staging,) = shim._session.connections.ask(
            "history", since_ns=0, until_ns=time.monotonic_ns()
        )["stagings"]
        assert (staging["model"], staging["error"], staging["stopped"]) == ("b", "", False)
        assert shim.chat("b", "Hi.", max_tokens=1).residency.storage == "staged"


def state(shim: Shim, model: str) -> str:
    """The residency of a model's engine."""
    rows = shim.status()["engines"]
    return str(next(row["state"] for row in rows if model in row["models"]))


def queued(shim: Shim, count: int) -> bool:
    """Whether so many requests wait."""
    return len(shim.status()["queue"]) == count


def test_six_alternating_requests_cost_two_loads(tiny_models: dict[str, Path]) -> None:
    """They wait at once, at capacity one; each caller gets the answer that it asked for."""
    with shim_of(tiny_models, ONE) as shim, ThreadPoolExecutor(6) as pool:
        with shim.stream("c", "Go on.", max_tokens=700, **NO_END) as holding:
            next(holding)
            began_ns = time.monotonic_ns()
            asked = []
            for number, model in enumerate("ababab"):
                asked.append(pool.submit(shim.chat, model, "Hi.", max_tokens=number + 1, **NO_END))
                assert wait_until(partial(queued, shim, number + 1))
        replies = [future.result(60) for future in asked]
        loads = loads_since(shim, began_ns)
    assert [row["model"] for row in loads] == ["a", "b"]
    assert [reply.model for reply in replies] == list("ababab")
    assert [reply.usage.completion_tokens for reply in replies] == [1, 2, 3, 4, 5, 6]


def test_a_lone_request_is_passed_for_max_wait_and_is_served_then(
    tiny_models: dict[str, Path],
) -> None:
    """The model that holds the bytes always has a request that waits; then it leaves all the same."""
    max_wait_s = 0.5
    with shim_of(tiny_models, ONE, max_wait=max_wait_s) as shim, ThreadPoolExecutor(2) as pool:
        holding = shim.stream("a", "Go on.", max_tokens=1)
        lone = pool.submit(shim.chat, "b", "Hello.", max_tokens=1)
        assert wait_until(partial(queued, shim, 1))
        while not lone.done():
            following = pool.submit(shim.stream, "a", "Go on.", max_tokens=1)
            assert wait_until(lambda: queued(shim, 2) or lone.done())
            holding.close()
            holding = following.result(60)
        holding.close()
        records = [r for r in shim.status()["decisions"] if "producer" in r["wanted"]]
    assert lone.result().residency.waited_s >= max_wait_s
    assert any(record["draining"] for record in records)


def test_a_deadline_that_passes_has_loaded_nothing(tiny_models: dict[str, Path]) -> None:
    """The model that works goes on; nothing was evicted or read for the late one."""
    with shim_of(tiny_models, ONE) as shim:
        with shim.stream("a", "Go on.", max_tokens=900, **NO_END) as working:
            next(working)
            began_ns = time.monotonic_ns()
            with ThreadPoolExecutor(1) as pool, pytest.raises(DeadlineExceeded):
                pool.submit(shim.chat, "b", "Hello.", max_tokens=1, deadline_s=0.3).result()
            assert state(shim, "a") == "leased"
        assert loads_since(shim, began_ns) == []
