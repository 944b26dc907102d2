"""What continuous batching gives: 16 requests at the same time to vLLM, beside one at a time.

Run with `python bench/batching.py [--rounds N]` after `make test-vllm`, which builds what it needs.
Prints one JSON object as its last line: `one_s` (a request alone), `sixteen_s` (16 at the same time,
until all are answered), `share` (`sixteen_s` in 16 times `one_s`; below a third is the aim), and `at_once`
(the most request spans that overlap on the trace).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _common import end_on_signals, last_line, say

from shim import Shim
from tools.vllm_server import NAME, SLOTS, vllm_model, vllm_server
from traces import RunTrace

LAYERS = 32
TOKENS = 64
ROUNDS = 5


def ask(number: int) -> dict[str, Any]:
    """The arguments of one request; none finds the prompt of another one in the cache."""
    text = f"{number}: tell a long story."
    return {
        "messages": text,
        "max_tokens": TOKENS,
        "temperature": 0.0,
        "extra": {"ignore_eos": True},
    }


async def seconds(shim: Shim, numbers: Sequence[int]) -> float:
    """How long these requests take, all sent at the same time."""
    start_s = time.perf_counter()
    replies = await asyncio.gather(*(shim.achat(NAME, **ask(n)) for n in numbers))
    passed_s = time.perf_counter() - start_s
    if {reply.usage.completion_tokens for reply in replies} != {TOKENS}:
        raise SystemExit("an answer has not the tokens that it was asked for")
    return passed_s


async def measured(shim: Shim, rounds: int) -> tuple[list[float], list[float]]:
    """The seconds of one request and those of 16, in turns."""
    alone, together = [], []
    await seconds(shim, range(SLOTS))
    for turn in range(1, rounds + 1):
        first = 1000 * turn
        alone.append(await seconds(shim, [first]))
        together.append(await seconds(shim, range(first + 1, first + 1 + SLOTS)))
    return alone, together


def most_at_once(trace: Path) -> int:
    """How many request spans of a Chrome Trace overlap at most."""
    raw = gzip.decompress(trace.read_bytes()) if trace.suffix == ".gz" else trace.read_bytes()
    found = json.loads(raw)
    events = found["traceEvents"] if isinstance(found, dict) else found
    spans = [e for e in events if e.get("name") == "request" and e.get("ph") == "X"]
    edges = [(e["ts"], 1) for e in spans] + [(e["ts"] + e["dur"], -1) for e in spans]
    running = most = 0
    for _, step in sorted(edges):
        running += step
        most = max(most, running)
    return most


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    end_on_signals()
    with tempfile.TemporaryDirectory(prefix="kw-bench-") as name:
        folder = Path(name)
        with vllm_server(vllm_model(LAYERS), folder / "log") as server:
            say(f"vLLM is ready after {server.ready_s:.1f} s")
            config = {"models": {NAME: {"url": server.url, "backend": "vllm"}}}
            with Shim(config) as shim, RunTrace(directory=folder) as run:
                alone, together = asyncio.run(measured(shim, rounds))
        if run.trace_path is None:
            raise SystemExit(f"no trace was written: {run.problems}")
        at_once = most_at_once(run.trace_path)
    one_s, sixteen_s = statistics.median(alone), statistics.median(together)
    say(f"tokens a second: {TOKENS / one_s:.0f} alone, {SLOTS * TOKENS / sixteen_s:.0f} together")
    share = sixteen_s / (SLOTS * one_s)
    last_line({"one_s": one_s, "sixteen_s": sixteen_s, "share": share, "at_once": at_once})


if __name__ == "__main__":
    main()
