"""The models of a run as `keepwarm simulate --models` takes them: bytes, and what loads and tokens took."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from traces.reading.spans_of import RequestTimes, Spans, Stay


def models_of(spans: Spans) -> dict[str, Any]:
    """`{"models": [...]}` of all models of which the trace has a load with its bytes."""
    loads = defaultdict[str, list[Stay]](list)
    for load in spans.loads:
        if load.bytes and load.end > load.begin:
            loads[load.model].append(load)
    return {
        "models": [
            _model(name, found, [r for r in spans.requests.values() if r.model == name])
            for name, found in loads.items()
        ]
    }


def _model(name: str, loads: list[Stay], requests: list[RequestTimes]) -> dict[str, Any]:
    n_bytes = max(load.bytes for load in loads)
    seconds = statistics.median(load.end - load.begin for load in loads)
    spoken = [r for r in requests if r.output_tokens and r.predicted_s]
    row = {
        "name": name,
        "bytes": n_bytes,
        "load_fixed_s": 0.0,
        "load_bandwidth_bytes_per_s": n_bytes / seconds,
    }
    if spoken:
        tokens = sum(r.output_tokens or 0 for r in spoken)
        row["decode_tokens_per_s"] = tokens / sum(r.predicted_s or 0.0 for r in spoken)
    return row
