"""Ten thousand short requests: `python bench/soak.py`. Memory and descriptors must stay flat.

A background keeper serves two real models (an embedder and a chat model, under a budget for both) to this
process: whole answers, streams, streams that are closed early, embeddings and, every few requests, an event
loop of its own. Unique memory and descriptors of the keeper and of this process are read after every tenth
of the requests; growth is from the second tenth (when caches are filled) to the last. The last line of the
output is `{"requests", "keeper_growth_bytes", "client_growth_bytes", "keeper_descriptors_growth",
"client_descriptors_growth", "engine_growth_bytes", "latency_ratio"}`; `latency_ratio` is the median request
time of the last tenth over that of the second.
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

from harness.demo.models import make_models
from shim import Shim

OPTIONS: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0}
TENTHS = 10


@dataclass(frozen=True)
class Reading:
    """What the processes hold, and how long requests took, at one moment."""

    keeper_bytes: int
    client_bytes: int
    engine_bytes: int
    keeper_descriptors: int
    client_descriptors: int
    median_s: float


def one(shim: Shim, number: int) -> None:
    """One request, of a kind that its number says."""
    kind = number % 10
    if kind < 5:
        shim.chat("a", "Hello.", **OPTIONS)
    elif kind < 7:
        with shim.stream("a", "Hello.", **OPTIONS) as pieces:
            list(pieces)
    elif kind == 7:
        with shim.stream("a", "Hello.", max_tokens=8) as pieces:
            next(pieces, None)
    elif kind == 8:
        shim.embed("e", ["Hello."])
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
        sum(engine.memory_full_info().uss for engine in engines),
        keeper.num_fds(),
        client.num_fds(),
        statistics.median(seconds),
    )


def main() -> int:
    """Run, and print the growth."""
    parser = argparse.ArgumentParser(description="Memory and descriptors over many short requests.")
    parser.add_argument("--requests", type=int, default=10_000)
    requests = parser.parse_args().requests
    end_on_signals()
    made = make_models(REPOSITORY / "models" / "tiny", tiny=True)
    models = {
        "a": {"path": str(made["classifier"]), "context": 1024},
        "e": {"path": str(made["embedder"]), "role": "embedder", "context": 512},
    }
    found: list[Reading] = []
    with background_shim({"budget": {"device": "host", "reserve": 0}, "models": models}) as shim:
        for tenth in range(TENTHS):
            seconds = []
            for number in range(requests // TENTHS):
                start_s = time.perf_counter()
                one(shim, number)
                seconds.append(time.perf_counter() - start_s)
            found.append(reading(shim, seconds))
            say(f"{(tenth + 1) * requests // TENTHS:>7} requests: {found[-1]}")
    first, last = found[1], found[-1]
    last_line(
        {
            "requests": requests,
            "keeper_growth_bytes": last.keeper_bytes - first.keeper_bytes,
            "client_growth_bytes": last.client_bytes - first.client_bytes,
            "engine_growth_bytes": last.engine_bytes - first.engine_bytes,
            "keeper_descriptors_growth": last.keeper_descriptors - first.keeper_descriptors,
            "client_descriptors_growth": last.client_descriptors - first.client_descriptors,
            "latency_ratio": last.median_s / first.median_s,
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
