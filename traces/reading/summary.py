"""Where a run's time went, which waits were the worst, and what would help. Pure.

The wall time is split so that its parts add up: each moment belongs to the first of generating, evaluating
a prompt, a load that a request waits for, and waiting otherwise; what is left is the program's own
(`harness_s`). Load seconds beside those that a request visibly waited for are hidden.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from traces.reading.advice import AdviceFigures, AdvisedConfig, TraceAdvice, advised
from traces.reading.covered_times import CoveredTimes, covered
from traces.reading.request_times import RequestTimes
from traces.reading.spans_of import Spans, Stay
from traces.reading.totals import ModelTotals

WAIT_S: Final = 0.005
"""Shorter waits are not told: they would be said to have taken 0.00 s."""
REGRETTED_WITHIN_S: Final = 30.0
"""An eviction is regretted if its model is loaded again within so many seconds."""
ITS_LOAD: Final = "its load"
"""What a request waits for whose model is loading already, as the keeper says it."""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One model: `load_s` are all its loads, `waited_load_s` those that a request waited for."""

    requests: int
    cold: int
    load_s: float
    waited_load_s: float
    loads: int
    tokens_per_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None


@dataclass(frozen=True, slots=True)
class Wait:
    """A request that waited long, and for what."""

    request: str
    model: str
    waited_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A run in figures. All times are seconds."""

    wall_s: float
    queue_s: float
    cold_load_s: float
    hidden_load_s: float
    prompt_s: float
    generate_s: float
    harness_s: float
    models: dict[str, ModelSummary]
    evictions: int
    regretted: int
    waits: tuple[Wait, ...]
    advice: tuple[TraceAdvice, ...]
    failed: int = 0


def summarise(
    spans: Spans,
    *,
    regretted_within_s: float = REGRETTED_WITHIN_S,
    force: AdvisedConfig | None = None,
) -> TraceSummary:
    """The summary of a trace's spans.

    Args:
        spans: of the trace.
        regretted_within_s: an eviction is regretted if its model is loaded again so soon.
        force: the configuration that advice is given for.
    """
    begin, end = spans.bounds
    totals = spans.totals
    visible = CoveredTimes(
        (load.begin, load.end) for load in spans.loads if load.id in totals.waited_for
    )
    parts, taken, before = list[float](), list[CoveredTimes](), 0.0
    for times in (totals.generating, totals.prompting, visible, totals.queueing):
        taken.append(times)
        reached = covered(taken, begin, end)
        parts.append(reached - before)
        before = reached
    load_s = sum(load.seconds for load in spans.loads)
    evicted = [stay for stay in spans.evictions if stay.reason.startswith("evicted for")]
    regretted = _regretted(evicted, spans, regretted_within_s)
    wall = end - begin
    models = _models(spans)
    reloads = {name: one.waited_load_s for name, one in models.items() if one.loads > 1}
    figures = AdviceFigures(wall or 1.0, parts[1], reloads, regretted, regretted_within_s)
    return TraceSummary(
        wall_s=wall,
        generate_s=parts[0],
        prompt_s=parts[1],
        cold_load_s=parts[2],
        queue_s=parts[3],
        hidden_load_s=max(0.0, load_s - parts[2]),
        harness_s=max(0.0, wall - sum(parts)),
        models=models,
        evictions=len(evicted),
        regretted=len(regretted),
        waits=tuple(_waits(totals.worst, spans.loads)),
        advice=advised(figures, spans, force or AdvisedConfig()),
        failed=totals.failed,
    )


def _models(spans: Spans) -> dict[str, ModelSummary]:
    waited_for, totals = spans.totals.waited_for, spans.totals.models
    loads = spans.loads_by_model()
    return {
        name: _of_model(totals.get(name) or ModelTotals(), loads.get(name, []), waited_for)
        for name in (totals | loads)
    }


def _of_model(mine: ModelTotals, loads: Sequence[Stay], waited_for: set[str]) -> ModelSummary:
    first = mine.first_tokens_s
    return ModelSummary(
        requests=mine.requests,
        cold=mine.cold,
        load_s=sum(load.seconds for load in loads),
        waited_load_s=sum(load.seconds for load in loads if load.id in waited_for),
        loads=len(loads),
        tokens_per_s=mine.tokens_per_s,
        ttft_p50_s=statistics.median(first) if first else None,
        ttft_p95_s=_p95(first) if first else None,
    )


def _p95(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def _waits(worst: Sequence[RequestTimes], loads: Sequence[Stay]) -> list[Wait]:
    by_id = {load.id: load for load in loads}
    return [
        Wait(r.id, r.model, r.waited_s, _cause(r, by_id.get(r.waited_for or "")))
        for r in worst
        if r.waited_s >= WAIT_S
    ]


def _cause(request: RequestTimes, load: Stay | None) -> str:
    queued_for = request.queued_for
    if load is None:
        return queued_for or "what the trace does not say"
    loaded = f"the load of {load.model} ({load.seconds:.2f} s, {load.storage}, {load.reason})"
    return loaded if queued_for in ("", ITS_LOAD) else f"{queued_for}, then {loaded}"


def _regretted(evicted: Sequence[Stay], spans: Spans, within_s: float) -> list[Stay]:
    """Evictions whose model was loaded again soon."""
    begins = {
        model: sorted(load.begin for load in loads)
        for model, loads in spans.loads_by_model().items()
    }

    def again(gone: Stay) -> bool:
        found = begins.get(gone.model, [])
        at = bisect_left(found, gone.end)
        return at < len(found) and found[at] <= gone.end + within_s

    return list(filter(again, evicted))
