"""Placements from the placement plan: joint decisions over its entries. No model file is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from budget.footprint import HOST, Footprint, Placement
from budget.placement.decisions import Decision
from budget.placement.planner import plan_together
from budget.placement.tables import ROLE_WORK, ModelChoices
from shim.placement.plan_entry import Entry, PlanPoint, Sizes, variant_of
from shim.placement.plan_file import PlacementPlan


@dataclass(frozen=True, slots=True)
class Asked:
    """A configuration's request for one model; `stamp` is that of its files now.

    `sizes` are (context, slots), the preferred first.
    """

    key: str
    role: str | None
    pinned: bool
    n_gpu_layers: int | None
    sizes: tuple[tuple[int, int], ...]
    stamp: Callable[[Entry], object]


@dataclass(frozen=True, slots=True)
class Decided:
    """One model's placements, best first, with the entry and the decision behind them."""

    entry: Entry
    placements: tuple[Placement, ...]
    decision: Decision


@dataclass(slots=True)
class Decisions:
    """The placements that a plan gives for a configuration.

    `missing` has, by model name, why the plan has no placement. `changes` are the differences to the
    decisions when the plan was built, one line each.
    """

    decided: dict[str, Decided] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def decide(plan: PlacementPlan, asked: Mapping[str, Asked], limits: Mapping[str, int]) -> Decisions:
    """Decide the placements of all models that the plan knows, jointly.

    Raises:
        ConfigError: pinned models do not fit together.
    """
    found = Decisions()
    entries: dict[str, Entry] = {}
    candidates = []
    for name, model in asked.items():
        entry, reason = _entry(plan, model)
        if entry is None:
            found.missing[name] = reason
            continue
        candidate = candidate_of(name, model, entry)
        if isinstance(candidate, str):
            found.missing[name] = candidate
            continue
        entries[name] = entry
        candidates.append(candidate)
    joint = plan_together(candidates, limits)
    for name in joint.misfits:
        found.missing[name] = "it fits nowhere with what was measured"
    for decision in joint.decisions:
        entry = entries[decision.name]
        placements = tuple(placements_of(entry, decision, limits))
        found.decided[decision.name] = Decided(entry, placements, decision)
        was = plan.decisions.get(asked[decision.name].key)
        found.changes += changes(decision, was)
    return found


def _entry(plan: PlacementPlan, model: Asked) -> tuple[Entry | None, str]:
    if model.key not in plan.entries:
        return None, "the plan has no entry for it"
    entry = plan.entry(model.key)
    if entry is None:
        return None, "its entry is damaged"
    if model.stamp(entry) != entry.stamp:
        return None, "its file changed since it was measured"
    return entry, ""


def candidate_of(name: str, model: Asked, entry: Entry) -> ModelChoices | str:
    """The planner's input for a model, or the reason why its entry cannot be used."""
    by_size = {(sizes.n_ctx, sizes.slots): sizes for sizes in entry.variants}
    if any(size not in by_size for size in model.sizes):
        return "its context or slots were not measured"
    chosen = [by_size[size] for size in model.sizes]
    points = {point.n_gpu_layers for point in chosen[0].points}
    if model.n_gpu_layers is not None and model.n_gpu_layers not in points:
        return f"n_gpu_layers = {model.n_gpu_layers} was not measured"
    work = ROLE_WORK[model.role]
    return ModelChoices(
        name,
        tuple(variant_of(entry, sizes) for sizes in chosen),
        rate=work.rate,
        weight=work.weight,
        passes=work.passes,
        load_s=entry.load_s,
        pinned=model.pinned,
        n_gpu_layers=model.n_gpu_layers,
        role=model.role,
    )


def placements_of(entry: Entry, decision: Decision, limits: Mapping[str, int]) -> list[Placement]:
    """The decided placement, then half of its layers (for a device that refuses memory), then the CPU."""
    sizes = next(
        s for s in entry.variants if (s.n_ctx, s.slots) == (decision.n_ctx, decision.slots)
    )
    by_layers = {point.n_gpu_layers: point for point in sizes.points}
    best = _placement(entry, by_layers[decision.n_gpu_layers], decision.reason)
    if not decision.n_gpu_layers or decision.reason.startswith("n_gpu_layers ="):
        return [best]
    below = [k for k in by_layers if 0 < k <= decision.n_gpu_layers // 2]
    spare = [_placement(entry, by_layers[max(below)], f"{max(below)} layers")] if below else []
    cpu = [_placement(entry, by_layers[0], "the CPU alone")] if 0 in by_layers else []
    fits = _bytes_on(sizes, 0) <= limits.get(HOST, 1 << 62)
    found = [best, *spare, *(cpu if fits else [])]
    return [replace(placement, tier=tier) for tier, placement in enumerate(found)]


def _bytes_on(sizes: Sizes, layers: int) -> int:
    point = next((p for p in sizes.points if p.n_gpu_layers == layers), None)
    return 0 if point is None else point.devices.get(HOST, Footprint()).total_bytes


def _placement(entry: Entry, point: PlanPoint, reason: str) -> Placement:
    return Placement(point.args, dict(point.devices), point.source, entry.n_layers, reason)


def changes(decision: Decision, was: Mapping[str, Any] | None) -> list[str]:
    """The differences to the decision when the plan was built, as text."""
    if was is None:
        return []
    now = decision_json(decision)
    lines = [f"{name} {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name]]
    return [f"{decision.name}: {', '.join(lines)} ({decision.reason})"] if lines else []


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision as the plan's file keeps it."""
    return {
        "n_gpu_layers": decision.n_gpu_layers,
        "devices": list(decision.devices),
        "n_ctx": decision.n_ctx,
        "slots": decision.slots,
    }
