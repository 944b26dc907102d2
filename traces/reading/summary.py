"""Where a run's time went, which waits were the worst, and what would help. Pure.

The wall time is split so that its parts add up: each moment belongs to the first of generating, evaluating
a prompt, a load that a request waits for, and waiting otherwise; what is left is the program's own
(`harness_s`). Load seconds beside those that a request visibly waited for are hidden.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from traces.reading.advice import AdviceFigures, AdvisedConfig, TraceAdvice, advised, covered
from traces.reading.spans_of import RequestTimes, Spans, Stay

REGRETTED_WITHIN_S: Final = 30.0
"""An eviction is regretted if its model is loaded again within so many seconds."""
WORST: Final = 5
ITS_LOAD: Final = "its load"
"""What a request waits for whose model is loading already, as the keeper says it."""

Times = Sequence[tuple[float, float]]


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
    requests = [r for r in spans.requests.values() if r.model]
    waited_for = {r.waited_for for r in requests if r.waited_for}
    visible = [(load.begin, load.end) for load in spans.loads if load.id in waited_for]
    generating = [r.generate for r in requests if r.generate]
    prompting = [r.prompt for r in requests if r.prompt]
    queueing = [
        (r.asked, r.granted) for r in requests if r.asked is not None and r.granted is not None
    ]
    parts, taken = list[float](), list[tuple[float, float]]()
    for times in (generating, prompting, visible, queueing):
        parts.append(covered(taken + times, begin, end) - covered(taken, begin, end))
        taken += times
    load_s = sum(load.end - load.begin for load in spans.loads)
    regretted = _regretted(spans, regretted_within_s)
    wall = end - begin
    models = {name: _of_model(name, requests, spans.loads, waited_for) for name in _models(spans)}
    shares = AdviceFigures(wall or 1.0, parts[1], _reloads(models), regretted, regretted_within_s)
    return TraceSummary(
        wall_s=wall,
        generate_s=parts[0],
        prompt_s=parts[1],
        cold_load_s=parts[2],
        queue_s=parts[3],
        hidden_load_s=max(0.0, load_s - parts[2]),
        harness_s=max(0.0, wall - sum(parts)),
        models=models,
        evictions=sum(stay.reason.startswith("evicted for") for stay in spans.evictions),
        regretted=len(regretted),
        waits=tuple(_waits(requests, spans.loads)),
        advice=advised(shares, spans, force or AdvisedConfig()),
        failed=sum(request.error is not None for request in requests),
    )


def _models(spans: Spans) -> list[str]:
    found = [r.model for r in spans.requests.values() if r.model] + [s.model for s in spans.loads]
    return list(dict.fromkeys(found))


def _of_model(
    name: str, requests: Sequence[RequestTimes], loads: Sequence[Stay], waited_for: set[str]
) -> ModelSummary:
    mine = [request for request in requests if request.model == name]
    loaded = [load for load in loads if load.model == name]
    spoken = [r for r in mine if r.output_tokens and r.predicted_s]
    seconds = sum(r.predicted_s or 0.0 for r in spoken)
    first = [r.first_token_s for r in mine if r.first_token_s is not None]
    return ModelSummary(
        requests=len(mine),
        cold=sum(request.cold for request in mine),
        load_s=sum(load.end - load.begin for load in loaded),
        waited_load_s=sum(load.end - load.begin for load in loaded if load.id in waited_for),
        loads=len(loaded),
        tokens_per_s=sum(r.output_tokens or 0 for r in spoken) / seconds if seconds else None,
        ttft_p50_s=statistics.median(first) if first else None,
        ttft_p95_s=_p95(first) if first else None,
    )


def _p95(values: Sequence[float]) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


def _waits(requests: Sequence[RequestTimes], loads: Sequence[Stay]) -> list[Wait]:
    by_id = {load.id: load for load in loads}
    worst = sorted(requests, key=lambda r: -r.waited_s)[:WORST]
    return [
        Wait(r.id, r.model, r.waited_s, _cause(r, by_id.get(r.waited_for or "")))
        for r in worst
        if r.waited_s > 0.001
    ]


def _cause(request: RequestTimes, load: Stay | None) -> str:
    queued_for = request.queued_for
    if load is None:
        return queued_for or "what the trace does not say"
    loaded = (
        f"the load of {load.model} ({load.end - load.begin:.2f} s, {load.storage}, {load.reason})"
    )
    return loaded if queued_for in ("", ITS_LOAD) else f"{queued_for}, then {loaded}"


def _regretted(spans: Spans, within_s: float) -> list[Stay]:
    """Evictions whose model was loaded again soon."""
    return [
        gone
        for gone in spans.evictions
        if gone.reason.startswith("evicted for")
        and any(
            load.model == gone.model and gone.end <= load.begin <= gone.end + within_s
            for load in spans.loads
        )
    ]


def _reloads(models: Mapping[str, ModelSummary]) -> dict[str, float]:
    return {name: one.waited_load_s for name, one in models.items() if one.loads > 1}
