"""Forty thousand short requests: `python bench/soak.py`. Memory and descriptors must stay flat.

A background keeper serves four real models of three kinds (llama.cpp's chat and vectors, a Python model, a
program that serves), under a budget for all, to this process: whole answers, streams, streams that are
closed early, embeddings, calls, a server's own paths and, every few requests, an event loop of its own.
Memory and descriptors of the keeper and of this process are read after every tenth of the requests.
Slopes (of resident bytes, for 10,000 requests) and growth are from the second tenth, when caches are
filled, to the last. Python takes memory by the megabyte, so that a fourth of the requests would show a leak
of that size where there is none. The exit code is 0 when both slopes are below 1 MB and descriptors are
flat.

The last line of the output is `{"requests", "keeper_slope_bytes", "client_slope_bytes",
"keeper_growth_bytes", "client_growth_bytes", "engine_growth_bytes", "keeper_descriptors_growth",
"client_descriptors_growth", "latency_ratio"}`; growth is of unique bytes, and `latency_ratio` the median
request time of the last tenth over that of the second.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import psutil
from _common import REPOSITORY, background_shim, end_on_signals, last_line, say
from campaign.models import HERE

from harness.demo.models import make_models
from shim import Shim

OPTIONS: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
TENTHS = 10
MOST_SLOPE_BYTES = 1_000_000
SPARE_DESCRIPTORS = 2
"""A connection is kept at one reading and not at another."""


@dataclass(frozen=True)
class Reading:
    """What the processes hold, and how long requests took, at one moment."""

    keeper_bytes: int
    client_bytes: int
    keeper_resident: int
    client_resident: int
    engine_bytes: int
    keeper_descriptors: int
    client_descriptors: int
    median_s: float


def one(shim: Shim, number: int) -> None:
    """One request, of a kind that its number says."""
    kind = number % 20
    if kind < 6:
        shim.chat("a", "Hello.", **OPTIONS)
    elif kind < 9:
        with shim.stream("a", "Hello.", **OPTIONS) as pieces:
            list(pieces)
    elif kind < 11:
        with shim.stream("a", "Hello.", max_tokens=8) as pieces:
            next(pieces, None)
    elif kind < 13:
        shim.embed("e", ["Hello."])
    elif kind < 15:
        shim.call("w", numbers=[1, 2, 3])
    elif kind < 16:
        list(shim.stream_call("w", numbers=[1, 2, 3], streamed=True))
    elif kind < 17:
        shim.chat("s", "Hello.")
    elif kind < 18:
        with shim.http("s") as http:
            http.post("/inference", json={})
    else:
        asyncio.run(shim.achat("a", "Hello.", **OPTIONS))


def reading(shim: Shim, seconds: list[float]) -> Reading:
    """The processes now."""
    gc.collect()
    status = shim.status()
    keeper, client = psutil.Process(status["keeper"]["pid"]), psutil.Process()
    engines = [psutil.Process(row["pid"]) for row in status["engines"] if row["pid"]]
    return Reading(
        keeper.memory_full_info().uss,
        client.memory_full_info().uss,
        keeper.memory_info().rss,
        client.memory_info().rss,
        sum(engine.memory_full_info().uss for engine in engines),
        keeper.num_fds(),
        client.num_fds(),
        statistics.median(seconds),
    )


def slope(values: list[int], requests: int) -> float:
    """What is added in 10,000 requests: the least-squares line through readings of equal distance."""
    middle_x, middle_y = (len(values) - 1) / 2, statistics.fmean(values)
    rise = sum((x - middle_x) * (y - middle_y) for x, y in enumerate(values))
    step = rise / sum((x - middle_x) ** 2 for x in range(len(values)))
    return step * TENTHS * 10_000 / requests


def configuration() -> dict[str, Any]:
    """Four models of three kinds, which all fit."""
    made = make_models(REPOSITORY / "models" / "tiny", tiny=True)
    served = {"command": [sys.executable, "server_program.py", "{port}", "."], "can": ["chat"]}
    models: dict[str, dict[str, Any]] = {
        "a": {"path": str(made["classifier"]), "context": 1024, "threads": 1},
        "e": {"path": str(made["embedder"]), "role": "embedder", "context": 512, "threads": 1},
        "w": {"factory": "worker_model:Adder", "options": {"mischief": "none"}, "bytes": "24MiB"},
        "s": {**served, "ready": "/health", "bytes": "24MiB"},
    }
    for name in ("w", "s"):
        models[name]["cwd"] = str(HERE)
    return {"budget": {"device": "host", "reserve": 0}, "models": models}


def main() -> int:
    """Run, and print the growth."""
    parser = argparse.ArgumentParser(description="Memory and descriptors over many short requests.")
    parser.add_argument("--requests", type=int, default=40_000)
    requests = parser.parse_args().requests
    end_on_signals()
    found: list[Reading] = []
    with background_shim(configuration()) as shim:
        for tenth in range(TENTHS):
            seconds = []
            for number in range(requests // TENTHS):
                start_s = time.perf_counter()
                one(shim, number)
                seconds.append(time.perf_counter() - start_s)
            found.append(reading(shim, seconds))
            say(f"{(tenth + 1) * requests // TENTHS:>7} requests: {found[-1]}")
    first, last = found[1], found[-1]
    figures = {
        "requests": requests,
        "keeper_slope_bytes": slope([one.keeper_resident for one in found[1:]], requests),
        "client_slope_bytes": slope([one.client_resident for one in found[1:]], requests),
        "keeper_growth_bytes": last.keeper_bytes - first.keeper_bytes,
        "client_growth_bytes": last.client_bytes - first.client_bytes,
        "engine_growth_bytes": last.engine_bytes - first.engine_bytes,
        "keeper_descriptors_growth": last.keeper_descriptors - first.keeper_descriptors,
        "client_descriptors_growth": last.client_descriptors - first.client_descriptors,
        "latency_ratio": last.median_s / first.median_s,
    }
    last_line(figures)
    slopes = max(figures["keeper_slope_bytes"], figures["client_slope_bytes"])
    left = max(figures["keeper_descriptors_growth"], figures["client_descriptors_growth"])
    return int(slopes >= MOST_SLOPE_BYTES or left > SPARE_DESCRIPTORS)


if __name__ == "__main__":
    sys.exit(main())
