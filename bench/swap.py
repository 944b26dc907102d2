"""What a swap costs, beside llama.cpp's router: `python bench/swap.py`.

Two of the demo's models alternate where there is room for one: with keepwarm under a byte budget, with
the router under `--models-max 1`. A swap is one request for the model that is not there, timed from
the call to its only token: evict, load, first token, with the files in the page cache. Both sides
get the same arguments, `--no-repack` among them (a model that often swaps is better mapped than
repacked), and take turns in blocks within one run. Then bursts: six requests at once, for the two models
in turns, which are answered with as few swaps as each side needs. The last line of the output is
`{"router_swap_p50_s", "keepwarm_swap_p50_s", "ratio", "router_burst_p50_s", "keepwarm_burst_p50_s",
"burst_ratio", "router_burst_loads", "keepwarm_burst_loads"}`; loads are per burst.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
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

from backends.openai import ChatRequest
from backends.openai.sync_client import SyncTransport
from harness.demo.models import make_models
from shim import Reply, Shim
from shim.config import Config
from shim.keeper.catalog.catalog import build_catalog

NAMES = ("producer", "evaluator")
PROMPT = "Say hello."
OPTIONS: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "seed": 1}
BLOCK = 4
ROUTER_ARGUMENTS = ["-c", "1024", "-np", "1", "-b", "512", "-ub", "128", "--no-repack"]
AT_ONCE = (NAMES[1], NAMES[0]) * 3
PARTS = ("evicting", "between", "loading", "first token")


def demo_files() -> dict[str, Path]:
    """The two models, read once so that they lie in the page cache."""
    made = make_models(REPOSITORY / "models" / "demo", progress=say)
    for name in NAMES:
        made[name].read_bytes()
    return {name: made[name] for name in NAMES}


def config(files: Mapping[str, Path], limit: int | str) -> dict[str, Any]:
    """Both models with the router's arguments, and that limit."""
    shared = {"context": 1024, "n_batch": 512, "n_ubatch": 128, "repack": False}
    models = {name: {"path": str(path), **shared} for name, path in files.items()}
    return {"budget": {"device": "host", "limit": limit, "reserve": 0}, "models": models}


def limit_for_one(files: Mapping[str, Path]) -> int:
    """A limit that holds either model and never both."""
    catalog = build_catalog(Config.from_mapping(config(files, "100%")))
    for error in catalog.errors.values():
        raise error
    booked = [p.placements[0].total_bytes for p in catalog.prepared.values()]
    return max(booked) + min(booked) // 2


def parts_of(shim: Shim, reply: Reply, started_ns: int) -> dict[str, float]:
    """Where a swap's seconds went, by the keeper's own history."""
    history = shim._session.connections.ask(
        "history", since_ns=started_ns, until_ns=time.monotonic_ns()
    )
    load, evict = history["loads"][-1], history["evictions"][-1]
    first_ns = started_ns + int((reply.ttft_s or reply.total_s) * 1e9)
    return {
        "evicting": (evict["end_ns"] - evict["start_ns"]) / 1e9,
        "between": (evict["start_ns"] - started_ns + load["start_ns"] - evict["end_ns"]) / 1e9,
        "loading": (load["end_ns"] - load["start_ns"]) / 1e9,
        "first token": (first_ns - load["end_ns"]) / 1e9,
    }


def keepwarm_side(shim: Shim, parts: dict[str, list[float]]) -> Callable[[str], float]:
    """One swap through keepwarm, in seconds."""

    def swap(model: str) -> float:
        started_ns = time.monotonic_ns()
        reply = shim.chat(model, PROMPT, **OPTIONS)
        seconds = (time.monotonic_ns() - started_ns) / 1e9
        if not reply.residency.cold:
            raise SystemExit(f"{model} was resident: the budget holds both models")
        if reply.residency.evicted:
            for name, value in parts_of(shim, reply, started_ns).items():
                parts[name].append(value)
        return seconds

    return swap


def router_side(router: Router, transport: SyncTransport) -> Callable[[str], float]:
    """One swap through the router, in seconds."""
    request = ChatRequest(PROMPT, OPTIONS)
    return lambda model: timed(lambda: transport.chat(router.door(model), request))


def measure(sides: Mapping[str, Callable[[str], float]], swaps: int) -> dict[str, list[float]]:
    """Seconds of every swap of every side, in blocks that take turns; each side's first is a load."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for swap in sides.values():
        swap(NAMES[1])
    for first in range(0, swaps, BLOCK):
        for name, swap in sides.items():
            for number in range(first, min(first + BLOCK, swaps)):
                times[name].append(swap(NAMES[number % 2]))
        say(f"{min(first + BLOCK, swaps)} of {swaps} swaps each")
    return times


def burst(ask: Callable[[str], object]) -> float:
    """Seconds until requests for both models, sent at once in turns, are all answered."""
    with ThreadPoolExecutor(len(AT_ONCE)) as pool:
        return timed(lambda: list(pool.map(ask, AT_ONCE)))


def bursts(shim: Shim, router: Router, transport: SyncTransport, rounds: int) -> dict[str, float]:
    """Bursts on both sides in turns: median seconds, and loads per burst."""
    request = ChatRequest(PROMPT, OPTIONS)
    seconds: dict[str, list[float]] = {"router": [], "keepwarm": []}
    since_ns, before = time.monotonic_ns(), router.loads()
    for number in range(rounds):
        seconds["router"].append(burst(lambda m: transport.chat(router.door(m), request)))
        seconds["keepwarm"].append(burst(lambda m: shim.chat(m, PROMPT, **OPTIONS)))
        say(f"{number + 1} of {rounds} bursts each")
    history = shim._session.connections.ask(
        "history", since_ns=since_ns, until_ns=time.monotonic_ns()
    )
    router_s, keepwarm_s = (percentile(s, 50) for s in seconds.values())
    return {
        "router_burst_p50_s": router_s,
        "keepwarm_burst_p50_s": keepwarm_s,
        "burst_ratio": keepwarm_s / router_s,
        "router_burst_loads": (router.loads() - before) / rounds,
        "keepwarm_burst_loads": len(history["loads"]) / rounds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--swaps", type=int, default=24, help="of each side")
    parser.add_argument("--bursts", type=int, default=8, help="of each side")
    options = parser.parse_args()
    end_on_signals()
    files, transport = demo_files(), SyncTransport()
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    limit = limit_for_one(files)
    with background_shim(config(files, limit)) as shim, Router(files, ROUTER_ARGUMENTS) as router:
        sides = {"router": router_side(router, transport), "keepwarm": keepwarm_side(shim, parts)}
        times = measure(sides, options.swaps)
        together = bursts(shim, router, transport, max(2, options.bursts))
        transport.close()
    for name, seconds in times.items():
        say(distribution(name, seconds))
        for number, model in enumerate(NAMES):
            say(distribution(f"  {model}", seconds[number::2]))
    say("of keepwarm's:")
    for name, seconds in parts.items():
        say(distribution(f"  {name}", seconds))
    router_s, keepwarm_s = percentile(times["router"], 50), percentile(times["keepwarm"], 50)
    last_line(
        {
            "router_swap_p50_s": router_s,
            "keepwarm_swap_p50_s": keepwarm_s,
            "ratio": keepwarm_s / router_s,
            **together,
        }
    )


if __name__ == "__main__":
    main()
