"""The same crossings on real llama-server engines; where they meet is theirs, how they end is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import shim.keeper.engines.monitor as monitor_module
from backends.engine_process.orphans import leftovers
from backends.machine.devices import free_bytes
from shim import EngineDied, LoadFailed, Shim
from tests.processes import wait_until

pytestmark = pytest.mark.real

LIMIT_BYTES = 30_000_000
QUIET: dict[str, Any] = {"max_tokens": 2, "temperature": 0.0}


@pytest.fixture
def one(tiny_models: dict[str, Path]) -> Iterator[Shim]:
    """Three models of which one fits at a time."""
    with Shim(config_of(tiny_models, LIMIT_BYTES)) as made:
        yield made
        check_books(made)


def config_of(files: dict[str, Path], limit: int) -> dict[str, Any]:
    """Three models under a limit."""
    names = (("a", "classifier"), ("b", "producer"), ("c", "evaluator"))
    entries = {n: {"path": str(files[f]), "context": 1024, "threads": 1} for n, f in names}
    budget = {"device": "host", "limit": limit, "reserve": 0}
    return {"budget": budget, "models": entries, "kv": {"enabled": False}}


def check_books(made: Shim) -> None:
    """No request waits, nothing is leased, and the books never held more than the limit."""
    status = made.status()
    assert status["queue"] == []
    assert not any(row["leases"] for row in status["engines"])
    held = sum(sum(row["bytes"].values()) for row in status["engines"])
    assert status["devices"][0]["reserved_bytes"] == held
    answer = made._session.connections.ask("history", since_ns=0, until_ns=time.monotonic_ns())
    for sample in answer["samples"]:
        assert sum(sample["resident"].values()) <= LIMIT_BYTES


def state(made: Shim, model: str) -> str:
    """The residency of a model's engine."""
    return str(next(r["state"] for r in made.status()["engines"] if model in r["models"]))


def test_arrivals_during_evictions_are_all_served(one: Shim) -> None:
    """Three callers ask for three models over and over; every answer is its caller's own."""

    def ask(number: int) -> tuple[str, int]:
        model, tokens = "abc"[number % 3], number % 5 + 1
        reply = one.chat(
            model, "Hi.", max_tokens=tokens, temperature=0.0, extra={"ignore_eos": True}
        )
        return reply.model, reply.usage.completion_tokens

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(ask, range(24)))
    assert answers == [("abc"[n % 3], n % 5 + 1) for n in range(24)]


def test_a_client_that_leaves_during_a_load_is_in_nobodys_way(one: Shim) -> None:
    """Its request is withdrawn with its connection; the next model gets the bytes."""
    for leaving, staying in (("a", "b"), ("b", "c"), ("c", "a")):
        line = one._session.connections.new()
        line.tell("lease", id=1, model=leaving, want="lease")
        line.close()
        assert one.chat(staying, "Hi.", **QUIET).model == staying


def test_an_engine_killed_while_it_loads_or_right_after_is_a_typed_error(one: Shim) -> None:
    """And the next request works."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(one.chat, "a", "Hi.", max_tokens=900, extra={"ignore_eos": True})
        assert wait_until(lambda: bool(leftovers(one.runtime)))
        for pid in leftovers(one.runtime):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises((LoadFailed, EngineDied)):
            asked.result(60)
    assert one.chat("a", "Hi.", **QUIET).model == "a"


def test_a_release_and_a_double_end_during_leases(one: Shim) -> None:
    """The generation goes on; a lease that is ended twice ends no other lease."""
    with one.stream("a", "Hi.", max_tokens=300, extra={"ignore_eos": True}) as stream:
        next(stream)
        one.release("a")
        line = one._session.connections.new()
        answer = line.ask("lease", model="a", want="load")
        assert answer["lease"] is None
        line.tell("end", lease="r1")
        line.tell("end", lease="r1")
        assert line.ask("status")["queue"] == []
        assert state(one, "a") == "leased"
        assert sum(1 for _ in stream) > 100
        line.close()


def test_a_prefetch_and_a_request_for_the_same_bytes(one: Shim) -> None:
    """The request is served whatever the prefetch was doing; then the plan goes on."""
    for _ in range(4):
        with one.plan(["a", "a"]):
            assert one.chat("b", "Hi.", **QUIET).model == "b"
            assert one.chat("a", "Hi.", **QUIET).model == "a"
    assert one.status()["plans"] == {}


def test_another_program_takes_memory_and_gives_it_back(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefetched and unused goes first, then idle; a lease stays; low memory is said and recovers."""
    free = {"host": free_bytes("host")}
    monkeypatch.setattr(monitor_module, "free_bytes", lambda device: free[device])
    monkeypatch.setattr(monitor_module, "MEASURE_EVERY_S", 0.05)
    config = config_of(tiny_models, 90_000_000)
    config["budget"]["reserve"] = 1 << 30
    with Shim(config) as made:
        made.chat("b", "Hi.", **QUIET)
        with made.stream("a", "Hi.", max_tokens=100_000, extra={"ignore_eos": True}) as stream:
            next(stream)
            made.declare(["c"])
            assert wait_until(lambda: state(made, "c") == "idle")
            free["host"] = (1 << 30) - 1_000_000
            assert wait_until(lambda: state(made, "c") == "absent")
            assert made.status()["devices"][0]["low_memory"]
            free["host"] = (1 << 30) - 60_000_000
            assert wait_until(lambda: state(made, "b") == "absent")
            assert state(made, "a") == "leased"
            free["host"] = 1 << 34
            assert wait_until(lambda: not made.status()["devices"][0]["low_memory"])
            assert wait_until(lambda: state(made, "c") == "idle"), "the plan goes on"
        assert made.chat("b", "Hi.", **QUIET).residency.cold
