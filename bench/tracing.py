"""What tracing costs a request and a span, beside a plain span of the OpenTelemetry SDK.

Run with `python -m bench.tracing [--requests N]`. Prints one JSON object as its last line, in
microseconds in the caller's thread: `off_us` (a request without a run: what every untraced request pays),
`off_thread_us` (the same in a plain thread), `on_us` and `on_p99_us` (a request within a run: its five
spans), `span_us` (a span around nothing), `otel_span_us` (the same by the SDK with a batch processor);
and `many_spans_s` (seconds from the first of 100,000 spans until all are in the file) and
`bytes_per_request` of the file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from traces import RequestRecord, RunTrace, current_run

_ORIGIN_NS = time.monotonic_ns()
_LENGTH_NS = 50_000_000
MANY_SPANS = 100_000
SPANS_A_REQUEST = 5


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
    return times, _file_of(run).stat().st_size


def span_us(spans: int, directory: Path) -> list[float]:
    """Microseconds of each span around nothing within a run."""
    times = []
    with RunTrace(directory=directory) as run:
        for number in range(spans):
            start = time.perf_counter_ns()
            with run.span("stage", letter=number):
                pass
            times.append((time.perf_counter_ns() - start) / 1e3)
    _file_of(run)
    return times


def otel_span_us(spans: int) -> list[float]:
    """Microseconds of each span around nothing by the OpenTelemetry SDK, exported to nowhere."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(_Nowhere(), max_queue_size=spans + 1))
    tracer, times = provider.get_tracer("bench"), []
    for number in range(spans):
        start = time.perf_counter_ns()
        with tracer.start_as_current_span("stage", attributes={"letter": number}):
            pass
        times.append((time.perf_counter_ns() - start) / 1e3)
    provider.shutdown()
    return times


def written_s(spans: int, directory: Path) -> float:
    """Seconds from the first of so many spans until all are in the file: the best of three runs."""
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        with RunTrace(directory=directory) as run:
            for number in range(spans // SPANS_A_REQUEST):
                run.request(record(number))
        rounds.append(time.perf_counter() - start)
        _file_of(run).unlink()
    return min(rounds)


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


def _file_of(run: RunTrace) -> Path:
    if run.problems or run.trace_path is None:
        raise SystemExit(f"the run had problems: {run.problems}")
    return run.trace_path


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
        spans = span_us(requests, Path(directory))
        plain = otel_span_us(requests)
        seconds = written_s(MANY_SPANS, Path(directory))
    print(f"{requests} traced requests and spans, {requests * 50} untraced requests a round")
    result = {
        "off_us": round(off, 3),
        "off_thread_us": round(off_thread, 3),
        "on_us": round(statistics.median(times), 1),
        "on_p99_us": round(statistics.quantiles(times, n=100)[98], 1),
        "span_us": round(statistics.median(spans), 1),
        "otel_span_us": round(statistics.median(plain), 1),
        "many_spans_s": round(seconds, 2),
        "bytes_per_request": size // requests,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
