"""What a warm `chat()` adds to a request, beside what llama.cpp's router adds: `python bench/overhead.py`.

Four ways take turns in every round, on one tiny model, with one answer token and one client library
and connection pool (`backends.openai.SyncTransport`): straight to keepwarm's engine, through
`chat()`, straight to the router's child, through the router. The last line of the output is
`{"direct_p50_ms", "keepwarm_added_p50_ms", "router_added_p50_ms", "client_added_cpu_us",
"keeper_cpu_us"}`; the last two are a call's processor time, which other load changes little.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import (
    REPOSITORY,
    Router,
    background_shim,
    distribution,
    end_on_signals,
    last_line,
    percentile,
    say,
    timed,
)

from backends.base import Endpoint
from backends.openai import ChatRequest
from backends.openai.sync_client import SyncTransport
from harness.demo.models import make_models
from shim import Shim

MODEL = "producer"
PROMPT = "Say hello."
OPTIONS: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "seed": 1}
WARM_UP_ROUNDS = 20
ROUTER_ARGUMENTS = ["-c", "512", "-np", "1", "-b", "512", "-ub", "128", "-t", "1", "-tb", "1"]


def tiny_model() -> Path:
    """The model that both sides run."""
    return make_models(REPOSITORY / "models" / "tiny", tiny=True, progress=say)[MODEL]


def config(model: Path) -> dict[str, object]:
    """The same arguments as the router gets."""
    entry = {"path": str(model), "context": 512, "n_batch": 512, "n_ubatch": 128, "threads": 1}
    return {"budget": {"device": "host", "limit": "1GiB"}, "models": {MODEL: entry}}


def engine_endpoint(shim: Shim) -> Endpoint:
    """The engine of a model that is resident, for requests past the keeper."""
    (socket,) = shim.runtime.glob("e-*.sock")
    return Endpoint("http://engine", MODEL, "llama.cpp", socket_path=str(socket))


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way in every round; the way that goes first changes each round."""
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seconds = timed(ways[name])
            if number >= WARM_UP_ROUNDS:
                times[name].append(seconds)
        if number % 100 == 99:
            say(f"round {number + 1} of {WARM_UP_ROUNDS + rounds}")
    return times


def added_ms(through: list[float], straight: list[float]) -> float:
    """The median over the rounds of what one way took longer than the other in the same round.

    Rounds are compared with themselves, so that a machine that is slower for a while adds to neither.
    """
    return percentile([a - b for a, b in zip(through, straight, strict=True)], 50) * 1e3


def spent_us(pid: int) -> float:
    """Processor time of a process's threads so far, by the scheduler's nanoseconds."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e3


def cpu_us(shim: Shim, direct: Callable[[], object], calls: int) -> dict[str, float]:
    """Processor time of a call: what the client spends beside a direct one, and the keeper."""
    pid = int(shim.status()["keeper"]["pid"])
    began_s = time.thread_time()
    for _ in range(calls):
        direct()
    direct_s = time.thread_time() - began_s
    before_us, began_s = spent_us(pid), time.thread_time()
    for _ in range(calls):
        shim.chat(MODEL, PROMPT, **OPTIONS)
    chat_s, keeper_us = time.thread_time() - began_s, spent_us(pid) - before_us
    return {
        "client_added_cpu_us": (chat_s - direct_s) / calls * 1e6,
        "keeper_cpu_us": keeper_us / calls,
    }


def profile(shim: Shim, calls: int) -> None:
    """Where the client's own time goes in a warm call, to standard error."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(calls):
        shim.chat(MODEL, PROMPT, **OPTIONS)
    profiler.disable()
    pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--profile", action="store_true", help="also profile the client")
    options = parser.parse_args()
    end_on_signals()
    model = tiny_model()
    transport, request = SyncTransport(), ChatRequest(PROMPT, OPTIONS)
    with background_shim(config(model)) as shim, Router({MODEL: model}, ROUTER_ARGUMENTS) as router:
        say("loading the model on both sides")
        shim.chat(MODEL, PROMPT, **OPTIONS)
        door, engine = router.door(MODEL), engine_endpoint(shim)
        transport.chat(door, request)
        child = router.child(MODEL)
        times = measure(
            {
                "direct": lambda: transport.chat(engine, request),
                "keepwarm": lambda: shim.chat(MODEL, PROMPT, **OPTIONS),
                "router's child": lambda: transport.chat(child, request),
                "router": lambda: transport.chat(door, request),
            },
            options.rounds,
        )
        cpu = cpu_us(shim, lambda: transport.chat(engine, request), 4 * options.rounds)
        if options.profile:
            profile(shim, 500)
        transport.close()
    for name, seconds in times.items():
        say(distribution(name, seconds))
    last_line(
        {
            "direct_p50_ms": percentile(times["direct"], 50) * 1e3,
            "keepwarm_added_p50_ms": added_ms(times["keepwarm"], times["direct"]),
            "router_added_p50_ms": added_ms(times["router"], times["router's child"]),
            **cpu,
        }
    )


if __name__ == "__main__":
    main()
