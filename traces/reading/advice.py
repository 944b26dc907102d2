"""What would help a run, and the lines that do it: what differs from the configuration in force. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from traces.reading.covered_times import covered
from traces.reading.spans_of import Spans, Stay

RELOADS_SHARE: Final = 0.15
"""Share of the wall time above which a model's reloads are worth a pin."""
QUEUE_SHARE: Final = 0.2
DISK_SHARE: Final = 0.1
PROMPT_SHARE: Final = 0.4
CACHED_SHARE: Final = 0.25
"""Share of the prompts' tokens that the KV cache spared, below which their beginnings differ."""
MOST_REGRETTED: Final = 2
MOST_SLOTS: Final = 256


@dataclass(frozen=True, slots=True)
class AdvisedModel:
    """What the configuration says of a model. `context` is None where it follows the file.

    `can_slots` and `can_pin`: whether these keys hold for its kind of engine.
    """

    slots: int = 1
    context: int | None = None
    pinned: bool = False
    can_slots: bool = True
    can_pin: bool = True


@dataclass(frozen=True, slots=True)
class AdvisedConfig:
    """The configuration that advice is given for; by default the one without a file."""

    prefetch: bool = True
    """Whether coming models are loaded ahead, once their order is declared."""
    models: Mapping[str, AdvisedModel] = field(default_factory=dict)

    def of(self, model: str) -> AdvisedModel:
        """A model; one that is not in the file has the defaults."""
        return self.models.get(model, AdvisedModel())


@dataclass(frozen=True, slots=True)
class TraceAdvice:
    """What would help, why, and the lines that do it.

    `section` is the section of the configuration in which these keys are set; empty where the lines are the
    program's own.
    """

    text: str
    section: str
    lines: str


@dataclass(frozen=True, slots=True)
class AdviceFigures:
    """The figures of a summary that advice is about. `reloads`: seconds of waited-for loads, by model."""

    wall_s: float
    prompt_s: float
    reloads: Mapping[str, float]
    regretted: Sequence[Stay]
    regretted_within_s: float


def advised(shares: AdviceFigures, spans: Spans, force: AdvisedConfig) -> tuple[TraceAdvice, ...]:
    """All that would help, the most telling first."""
    return (
        *_pin(spans, shares, force),
        *_uses(spans, shares),
        *_slots(spans, shares, force),
        *_prompts(spans, shares),
        *_ahead(spans, shares, force),
    )


def _pin(spans: Spans, shares: AdviceFigures, force: AdvisedConfig) -> list[TraceAdvice]:
    # One pin: with several the budget may hold nothing else.
    for name in sorted(shares.reloads, key=lambda model: -shares.reloads[model]):
        share, known = shares.reloads[name] / shares.wall_s, force.of(name)
        if share < RELOADS_SHARE:
            break
        if known.can_pin and not known.pinned and _leaves_room(spans, name):
            text = f"pin {name}: {share:.0%} of the wall time is its reloads"
            return [TraceAdvice(text, section_of(name), "pin = true")]
    return []


def _leaves_room(spans: Spans, name: str) -> bool:
    """Whether each other model of the run would fit beside this one, were it pinned."""
    largest = {
        model: max(load.bytes for load in loads) for model, loads in spans.loads_by_model().items()
    }
    limit, own = sum(spans.limits.values()), largest.pop(name, 0)
    return not limit or own + max(largest.values(), default=0) <= limit


def _uses(spans: Spans, shares: AdviceFigures) -> list[TraceAdvice]:
    declared = spans.declared()
    undone = [gone for gone in shares.regretted if gone.model not in declared]
    if len(undone) < MOST_REGRETTED:
        return []
    within = f"{shares.regretted_within_s:g} s"
    text = f"declare coming uses: {len(undone)} evictions were undone within {within}"
    return [TraceAdvice(text, "", _plan(gone.model for gone in undone))]


def _slots(spans: Spans, shares: AdviceFigures, force: AdvisedConfig) -> list[TraceAdvice]:
    """For the model whose requests waited longest for a slot, while others generated or not."""
    parts = {
        name: covered([one.slot_waits], *spans.bounds) for name, one in spans.totals.models.items()
    }
    name = max(parts, key=lambda model: parts[model], default="")
    share = parts.get(name, 0.0) / shares.wall_s
    known = force.of(name)
    if share < QUEUE_SHARE:
        return []
    why = f"in {share:.0%} of the wall time a request waits for one"
    if not known.can_slots or known.slots >= MOST_SLOTS:
        text = f"give long requests to {name} a lower priority, its slot is the only one: {why}"
        line = f"shim.chat({name!r}, messages, priority=-1)  # yields to the others in mid-answer"
        return [TraceAdvice(text, "", line)]
    lines = [f"slots = {min(MOST_SLOTS, 2 * known.slots)}"]
    if known.context is not None:
        # The slots share it: a request can use as much as before.
        lines.append(f"context = {2 * known.context}")
    return [TraceAdvice(f"give {name} more slots: {why}", section_of(name), "\n".join(lines))]


def _prompts(spans: Spans, shares: AdviceFigures) -> list[TraceAdvice]:
    """For prompts that are evaluated anew although they could begin as the one before."""
    tokens, cached = spans.totals.prompt_tokens, spans.totals.cached_tokens
    share = shares.prompt_s / shares.wall_s
    if share < PROMPT_SHARE or not tokens or cached / tokens > CACHED_SHARE:
        return []
    text = (
        f"let prompts begin alike: {share:.0%} of the wall time is their evaluation, and the KV cache "
        f"spared {cached / tokens:.0%} of their tokens"
    )
    lines = "messages = [what_never_changes, *history, what_changes]  # a date or a name comes last"
    return [TraceAdvice(text, "", lines)]


def _ahead(spans: Spans, shares: AdviceFigures, force: AdvisedConfig) -> list[TraceAdvice]:
    """For loads from the disk that a request waited for; those that were read ahead cost no time."""
    awaited = spans.totals.waited_for
    cold = [one for one in spans.loads if one.storage == "cold" and one.id in awaited]
    share = sum(one.seconds for one in cold) / shares.wall_s
    if share < DISK_SHARE:
        return []
    why = f"{share:.0%} of the wall time is loads from the disk"
    if not force.prefetch:
        return [TraceAdvice(f"let models be loaded ahead: {why}", "[budget]", "prefetch = true")]
    declared = spans.declared()
    unknown = [one.model for one in cold if one.model not in declared]
    if not unknown or _uses(spans, shares):
        # The order is declared, or is to be declared anyway.
        return []
    text = f"declare coming uses, so that models are loaded ahead: {why}"
    return [TraceAdvice(text, "", _plan(unknown))]


def _plan(models: Iterable[str]) -> str:
    return f"with shim.plan({list(dict.fromkeys(models))!r}): ..."


def section_of(model: str) -> str:
    """The section of a configuration that a model's keys are set in."""
    # A JSON text is a TOML one, but for DEL.
    quoted = json.dumps(model, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[models.{quoted}]"
