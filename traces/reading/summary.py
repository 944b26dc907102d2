"""Where a run's time went, which waits were the worst, and what would help. Pure.

The wall time is split so that its parts add up: each moment belongs to the first of generating, evaluating
a prompt, a load that a request waits for, and waiting otherwise; what is left is the program's own
(`harness_s`). Load seconds beside those that a request visibly waited for are hidden.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from traces.reading.spans_of import RequestTimes, Spans, Stay

REGRETTED_WITHIN_S: Final = 30.0
"""An eviction is regretted if its model is loaded again within so many seconds."""
WORST: Final = 5
RELOADS_SHARE: Final = 0.15
"""Share of the wall time above which a model's reloads are worth a pin."""
QUEUE_SHARE: Final = 0.2
DISK_SHARE: Final = 0.1
PROMPT_SHARE: Final = 0.4
CACHED_SHARE: Final = 0.25
"""Share of the prompts' tokens that the KV cache spared, below which their beginnings differ."""
MOST_REGRETTED: Final = 2

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
class TraceAdvice:
    """What would help, why, and the lines of the configuration or the program that do it."""

    text: str
    lines: str


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


def summarise(spans: Spans, *, regretted_within_s: float = REGRETTED_WITHIN_S) -> TraceSummary:
    """The summary of a trace's spans."""
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
        parts.append(_covered(taken + times, begin, end) - _covered(taken, begin, end))
        taken += times
    load_s = sum(load.end - load.begin for load in spans.loads)
    regretted = _regretted(spans, regretted_within_s)
    wall = end - begin
    models = {name: _of_model(name, requests, spans.loads, waited_for) for name in _models(spans)}
    figures = TraceSummary(
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
        advice=(),
        failed=sum(request.error is not None for request in requests),
    )
    return _advised(figures, spans, regretted)


def _covered(times: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """Seconds between begin and end that any of these covers."""
    total, reached = 0.0, begin
    for start, stop in sorted(times):
        more = min(stop, end) - max(start, reached)
        if more > 0:
            total += more
            reached = min(stop, end)
    return total


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
        Wait(r.id, r.model, r.waited_s, _cause(by_id.get(r.waited_for or "")))
        for r in worst
        if r.waited_s > 0.001
    ]


def _cause(load: Stay | None) -> str:
    if load is None:
        return "a free slot, or bytes of engines in use"
    return (
        f"the load of {load.model} ({load.end - load.begin:.2f} s, {load.storage}, {load.reason})"
    )


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


def _advised(figures: TraceSummary, spans: Spans, regretted: Sequence[Stay]) -> TraceSummary:
    found, wall = list[TraceAdvice](), figures.wall_s or 1.0
    reloaded = {n: m.waited_load_s / wall for n, m in figures.models.items() if m.loads > 1}
    # One pin: with several the budget may hold nothing else.
    name = max(reloaded, key=lambda model: reloaded[model], default="")
    if reloaded.get(name, 0.0) >= RELOADS_SHARE:
        text = f"pin {name}: {reloaded[name]:.0%} of the wall time is its reloads"
        found.append(TraceAdvice(text, f'[models."{name}"]\npin = true'))
    if len(regretted) >= MOST_REGRETTED:
        order = list(dict.fromkeys(gone.model for gone in regretted))
        within = f"{REGRETTED_WITHIN_S:g} s"
        text = f"declare coming uses: {len(regretted)} evictions were undone within {within}"
        found.append(TraceAdvice(text, f"with shim.plan({order!r}): ..."))
    found += _slots(spans, wall) + _prompts(figures, spans, wall)
    disk = sum(s.end - s.begin for s in spans.loads if s.storage == "cold")
    if disk / wall >= DISK_SHARE:
        text = f"let coming models be read ahead: {disk / wall:.0%} of the wall time is loads from the disk"
        found.append(TraceAdvice(text, "[budget]\nprefetch = true"))
    return TraceSummary(
        **{name: getattr(figures, name) for name in TraceSummary.__slots__ if name != "advice"},
        advice=tuple(found),
    )


def _slots(spans: Spans, wall: float) -> list[TraceAdvice]:
    """For the model whose requests waited longest for a slot, while others generated or not."""
    waits: dict[str, list[tuple[float, float]]] = {}
    for request in spans.requests.values():
        if request.waited_for is None and request.asked is not None and request.granted is not None:
            waits.setdefault(request.model, []).append((request.asked, request.granted))
    shares = {name: _covered(times, *spans.bounds) / wall for name, times in waits.items()}
    name = max(shares, key=lambda model: shares[model], default="")
    if shares.get(name, 0.0) < QUEUE_SHARE:
        return []
    text = f"give {name} more slots: in {shares[name]:.0%} of the wall time a request waits for one"
    return [TraceAdvice(text, f'[models."{name}"]\nslots = 2')]


def _prompts(figures: TraceSummary, spans: Spans, wall: float) -> list[TraceAdvice]:
    """For prompts that are evaluated anew although they could begin as the one before."""
    tokens = sum(request.prompt_tokens for request in spans.requests.values())
    cached = sum(request.cached_tokens for request in spans.requests.values())
    if figures.prompt_s / wall < PROMPT_SHARE or not tokens or cached / tokens > CACHED_SHARE:
        return []
    share, spared = figures.prompt_s / wall, cached / tokens
    text = (
        f"let prompts begin alike: {share:.0%} of the wall time is their evaluation, and the KV cache "
        f"spared {spared:.0%} of their tokens"
    )
    lines = "messages = [what_never_changes, *history, what_changes]  # a date or a name comes last"
    return [TraceAdvice(text, lines)]
