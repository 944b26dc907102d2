"""The models of a run as `keepwarm simulate --models` takes them: bytes, and what loads and tokens took."""

from __future__ import annotations

import statistics
from typing import Any

from traces.reading.spans_of import Spans, Stay
from traces.reading.totals import ModelTotals


def models_of(spans: Spans) -> dict[str, Any]:
    """`{"models": [...]}` of all models of which the trace has a load with its bytes."""
    return {
        "models": [
            _model(name, found, spans.totals.models.get(name) or ModelTotals())
            for name, loads in spans.loads_by_model().items()
            if (found := [load for load in loads if load.bytes and load.seconds > 0])
        ]
    }


def _model(name: str, loads: list[Stay], requests: ModelTotals) -> dict[str, Any]:
    n_bytes = max(load.bytes for load in loads)
    seconds = statistics.median(load.seconds for load in loads)
    row = {
        "name": name,
        "bytes": n_bytes,
        "load_fixed_s": 0.0,
        "load_bandwidth_bytes_per_s": n_bytes / seconds,
    }
    if requests.tokens_per_s is not None:
        row["decode_tokens_per_s"] = requests.tokens_per_s
    return row
