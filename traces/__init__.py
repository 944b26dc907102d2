"""Where the time of a run went: spans, a Chrome Trace file for Perfetto, and a line in `runs.jsonl`.

A leaf: imports OpenTelemetry and the standard library only. A program opens a `RunTrace`;
`current_run()` says whether one is open here, at the cost of one context variable.
"""

from traces.checked import EnteredTwice, InvalidArgument
from traces.otlp import otlp_exporter
from traces.place import default_directory
from traces.recording.span_handle import SpanHandle
from traces.records import (
    PREFETCH,
    CounterSample,
    EvictSpan,
    Incident,
    LoadSpan,
    RequestRecord,
    Storage,
)
from traces.run import RunTrace, current_run
from traces.runs import RequestLine, RunLine, append_run, read_runs

__all__ = [
    "PREFETCH",
    "CounterSample",
    "EnteredTwice",
    "EvictSpan",
    "Incident",
    "InvalidArgument",
    "LoadSpan",
    "RequestLine",
    "RequestRecord",
    "RunLine",
    "RunTrace",
    "SpanHandle",
    "Storage",
    "append_run",
    "current_run",
    "default_directory",
    "otlp_exporter",
    "read_runs",
]
