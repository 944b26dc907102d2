"""What tracing costs a request: without a run, within one, and with a thread that has no context.

Run with `python -m bench.tracing [--requests N]`. Prints one JSON object as its last line, in
microseconds a request: `off_us` (no run: what every untraced request pays), `off_thread_us` (the same in
a plain thread), `on_us` and `on_p99_us` (a request with its
queue, admit, prompt evaluation and generate spans, written to the file), and `bytes_per_request`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from traces import RequestRecord, RunTrace, current_run

_ORIGIN_NS = time.monotonic_ns()
_LENGTH_NS = 50_000_000


def record(number: int) -> RequestRecord:
    """A request of 50 ms; four slots are busy at any time."""
    start_ns = _ORIGIN_NS + number * _LENGTH_NS // 4
    end_ns = start_ns + _LENGTH_NS
    return RequestRecord(
        f"r{number}",
        "model",
        "llama.cpp",
        queued_ns=start_ns,
        granted_ns=start_ns + 100_000,
        sent_ns=start_ns + 200_000,
        first_token_ns=start_ns + 20_000_000,
        end_ns=end_ns,
        slot=number % 4,
        prompt_tokens=100,
        completion_tokens=30,
        prompt_ms=19.0,
        predicted_ms=30.0,
        finish_reason="stop",
    )


def one_request(number: int) -> None:
    """What the client does for a trace: ask for the run, and record only if there is one."""
    run = current_run()
    if run is not None:
        run.request(record(number))


def off_us(requests: int) -> float:
    """Microseconds a request without a run: the best of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter_ns()
        for number in range(requests):
            one_request(number)
        rounds.append((time.perf_counter_ns() - start) / requests / 1e3)
    return min(rounds)


def on_us(requests: int, directory: Path) -> tuple[list[float], int]:
    """Microseconds of each request within a run, and the bytes of its trace."""
    times = []
    with RunTrace(directory=directory) as run:
        for number in range(requests):
            start = time.perf_counter_ns()
            one_request(number)
            times.append((time.perf_counter_ns() - start) / 1e3)
    if run.problems or run.trace_path is None:
        raise SystemExit(f"the run had problems: {run.problems}")
    return times, run.trace_path.stat().st_size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    requests = parser.parse_args().requests
    off = off_us(requests * 50)
    with ThreadPoolExecutor(1) as pool:
        off_thread = pool.submit(off_us, requests * 50).result()
    with tempfile.TemporaryDirectory() as directory:
        times, size = on_us(requests, Path(directory))
    percentiles = statistics.quantiles(times, n=100)
    print(f"{requests} traced requests, {requests * 50} untraced ones a round")
    result = {
        "off_us": round(off, 3),
        "off_thread_us": round(off_thread, 3),
        "on_us": round(statistics.median(times), 1),
        "on_p99_us": round(percentiles[98], 1),
        "bytes_per_request": size // requests,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
