"""Layers, device, context and slots for all models together, by expected seconds per request.

A second counts relative to what the request takes with a device to itself. Nothing here prefers all
or nothing: a model that fits whole gets a device's bytes before a bigger one that would be split
because the same bytes make its requests faster by a larger factor (Amdahl's law). Contexts and slots
are shrunk, within what the configuration allows, where that is cheaper than a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from budget.errors import ConfigError
from budget.placement.choices import MIN_SPLIT_GAIN, BytePools, ModelOption, option_at, options_of
from budget.placement.decisions import Decision, describe
from budget.placement.search import Search
from budget.placement.tables import ModelChoices

REQUESTS_PER_S: Final = 0.1
"""Requests of all models together where nothing is known: one in ten seconds."""

MIN_SHRINK_GAIN: Final = 1.05
"""How many times cheaper the joint placement must become before contexts or slots are shrunk for it."""


@dataclass(frozen=True, slots=True)
class JointPlan:
    """Decisions in the order of the models; `seconds` a request is expected to take.

    The mean is by rate, by role, and by what each model's requests take alone.
    `misfits` are the models that fit nowhere within the limits.
    """

    decisions: tuple[Decision, ...]
    seconds: float
    misfits: tuple[str, ...] = ()

    def of(self, name: str) -> Decision:
        """A model's decision.

        Raises:
            KeyError: it has none.
        """
        for decision in self.decisions:
            if decision.name == name:
                return decision
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """What the planner weighs."""

    requests_per_s: float = REQUESTS_PER_S
    min_split_gain: float = MIN_SPLIT_GAIN
    min_shrink_gain: float = MIN_SHRINK_GAIN


def plan_together(
    models: Sequence[ModelChoices],
    limits: Mapping[str, int],
    settings: PlannerSettings | None = None,
) -> JointPlan:
    """Choose for all models of a configuration.

    Args:
        models: in any order; their names differ.
        limits: bytes by device, `host` and those that layers may go to.
        settings: thresholds and the rate of requests.

    Raises:
        ConfigError: pinned models do not fit together, each in any of its choices.
    """
    used = settings or PlannerSettings()
    pools = BytePools.of(limits)
    levels = {model.name: _first_possible(model, pools, used) for model in models}
    possible = [model for model in models if levels[model.name] is not None]
    misfits = tuple(model.name for model in models if levels[model.name] is None)
    if not possible:
        return JointPlan((), 0.0, misfits)
    chosen, seconds, shrunk = _with_shrinking(
        possible, pools, used, [levels[model.name] or 0 for model in possible]
    )
    if seconds == float("inf"):
        raise ConfigError(
            "the pinned models do not fit together, on any device and in any split.",
            hint="Raise the limit, pin fewer models, or choose smaller ones.",
            models=[model.name for model in possible if model.pinned],
            limits=dict(limits),
        )
    decisions = tuple(
        describe(model, level, option, pools, used.min_split_gain)
        for model, level, option in zip(possible, shrunk, chosen, strict=True)
    )
    return JointPlan(decisions, seconds, misfits)


def _first_possible(model: ModelChoices, pools: BytePools, settings: PlannerSettings) -> int | None:
    """The first variant that has any choice at all."""
    for level, variant in enumerate(model.variants):
        if options_of(model, variant, pools, min_gain=settings.min_split_gain):
            return level
    return None


def _with_shrinking(
    models: Sequence[ModelChoices], pools: BytePools, settings: PlannerSettings, levels: list[int]
) -> tuple[list[ModelOption], float, list[int]]:
    """The cheapest choice at the preferred sizes, or with as little shrunk as is worth it."""
    best = _solve(models, pools, settings, levels)
    if not any(len(m.variants) > level + 1 for m, level in zip(models, levels, strict=True)):
        return (*best, levels)
    if all(option.kind == "whole" for option in best[0]) and not _contended(best[0], pools):
        return (*best, levels)
    most = max(len(model.variants) for model in models)
    for step in range(1, most):
        tried = [
            min(max(level, step), len(m.variants) - 1)
            for m, level in zip(models, levels, strict=True)
        ]
        found = _solve(models, pools, settings, tried)
        if found[1] * settings.min_shrink_gain < best[1]:
            found, tried = _give_back(models, pools, settings, found, tried, levels)
            best, levels = found, tried
    return (*best, levels)


def _contended(chosen: Sequence[ModelOption], pools: BytePools) -> bool:
    sums = [sum(amounts) for amounts in zip(*(o.pool_bytes for o in chosen), strict=True)]
    return not pools.hold(sums)


def _give_back(
    models: Sequence[ModelChoices],
    pools: BytePools,
    settings: PlannerSettings,
    found: tuple[list[ModelOption], float],
    shrunk: list[int],
    preferred: list[int],
) -> tuple[tuple[list[ModelOption], float], list[int]]:
    """Undo what was shrunk for nothing, model by model."""
    for number in range(len(models)):
        while shrunk[number] > preferred[number]:
            tried = [*shrunk]
            tried[number] -= 1
            again = _solve(models, pools, settings, tried)
            if again[1] > found[1] * (1 + 1e-3):
                break
            found, shrunk = again, tried
    return found, shrunk


def _solve(
    models: Sequence[ModelChoices],
    pools: BytePools,
    settings: PlannerSettings,
    levels: Sequence[int],
) -> tuple[list[ModelOption], float]:
    simple = _all_whole(models, pools, levels)
    if simple is not None:
        return simple
    choices = [
        options_of(model, model.variants[level], pools, min_gain=settings.min_split_gain)
        for model, level in zip(models, levels, strict=True)
    ]
    if not all(choices):
        return [], float("inf")
    search = Search(models, choices, pools, settings.requests_per_s)
    chosen, seconds = search.run()
    if seconds == float("inf"):
        return chosen, seconds
    variants = [model.variants[level] for model, level in zip(models, levels, strict=True)]
    return search.refine(variants, settings.min_split_gain)


def _all_whole(
    models: Sequence[ModelChoices], pools: BytePools, levels: Sequence[int]
) -> tuple[list[ModelOption], float] | None:
    """Everything whole on the first device, where that is fastest and fits: nothing beats it."""
    if len(pools.devices) != 1 or any(model.n_gpu_layers is not None for model in models):
        return None
    chosen = []
    for model, level in zip(models, levels, strict=True):
        variant = model.variants[level]
        option = option_at(variant, pools, pools.devices[0], variant.whole)
        fastest = min(variant.cpu_token_s, float(variant.token_s[pools.devices[0]].min()))
        if option.token_s > fastest or not variant.may(variant.whole):
            return None
        chosen.append(option)
    if _contended(chosen, pools):
        return None
    shares = [model.rate * model.weight / model.alone_s for model in models]
    seconds = sum(
        share * model.passes * option.token_s
        for share, model, option in zip(shares, models, chosen, strict=True)
    )
    return chosen, seconds / sum(shares)
