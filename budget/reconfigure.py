"""Another configuration while the keeper runs: what did not change stays warm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from budget.desk import Desk
from budget.engines import NO_TIMEOUT, EngineRecord, EngineSpec, ModelEntry
from budget.errors import ConfigError
from budget.events import Reconfigured
from budget.pins import check_pins
from budget.policies.lru import Lru
from budget.residency import DORMANT
from budget.settings import Settings


def adopt(desk: Desk, models: Iterable[ModelEntry]) -> None:
    """Take over the model entries; a shared engine is pinned if any entry is.

    Raises:
        ConfigError: an entry names an engine that does not exist.
    """
    entries = {entry.name: entry for entry in models}
    for entry in entries.values():
        if entry.engine_id not in desk.residents:
            raise ConfigError(f"Model {entry.name} names unknown engine {entry.engine_id!r}.")
    desk.models = entries
    desk.holders.configure({name for name, entry in entries.items() if entry.pinned})
    for entry in entries.values():
        if entry.pinned:
            desk.pin(desk.residents[entry.engine_id], entry.name)
    for engine_id, keep_alive_s in longest_keep_alives(entries.values()).items():
        engine = desk.residents[engine_id]
        engine.keep_alive_s = keep_alive_s
        desk.restless[engine_id] = engine


def longest_keep_alives(entries: Iterable[ModelEntry]) -> dict[str, float]:
    """Seconds by engine: the longest of the models that share it."""
    longest: dict[str, float] = {}
    for entry in entries:
        before = longest.get(entry.engine_id, 0.0)
        forever = NO_TIMEOUT in (before, entry.keep_alive_s)
        longest[entry.engine_id] = NO_TIMEOUT if forever else max(before, entry.keep_alive_s)
    return longest


def reconfigure(desk: Desk, event: Reconfigured, now: float) -> None:
    """Take over models, engines and limits; engines that are gone leave when nobody leases them."""
    before = {name: entry.engine_id for name, entry in desk.models.items()}
    if event.settings is not None:
        _take_settings(desk, event.settings)
    _take_engines(desk, event.engines)
    _take_limits(desk, event.limits)
    _take_models(desk, event)
    follow(desk, before)
    _requeue(desk, now)
    for engine in list(desk.residents):
        desk.restless[engine.engine_id] = engine
        drop_if_retired(desk, engine)
    for claim in desk.claims:
        if not (claim.engine.demand or claim.engine.pins):
            desk.claims.drop(claim.engine.engine_id)
    desk.fitting.place_pins()


def drop_if_retired(desk: Desk, engine: EngineRecord) -> None:
    """Forget an engine that is no longer configured and holds nothing."""
    if engine.retired and engine.state in DORMANT:
        desk.forget(engine)


def follow(desk: Desk, before: dict[str, str]) -> None:
    """Plans and policy go on with the engines that run their models now.

    `before`: by model, the engine that ran it.
    """
    engine_of = {name: entry.engine_id for name, entry in desk.models.items()}
    desk.plans.follow(engine_of)
    successors: dict[str, str] = {}
    for model, engine_id in before.items():
        after = engine_of.get(model)
        if after is not None and after != engine_id and desk.residents[engine_id].retired:
            successors.setdefault(engine_id, after)
    desk.faults.forgive()
    desk.policy.reconfigured(successors)


def check_configuration(desk: Desk, event: Reconfigured) -> None:
    """Raise `ConfigError` unless the new configuration, with the pins of callers, holds."""
    devices = {ledger.device for ledger in desk.residents.books}
    if set(event.limits) != devices:
        raise ConfigError(
            f"The devices changed from {sorted(devices)} to {sorted(event.limits)}.",
            hint="Other [budget] devices need a restart: `keepwarm keeper stop`.",
        )
    pins = desk.holders.called()
    # A desk of the new configuration alone says whether it holds, before anything changes here.
    trial = Desk(event.limits, event.engines, Lru(), desk.settings)
    adopt(trial, (replace(m, pinned=m.pinned or m.name in pins) for m in event.models))
    check_pins(trial)


def _take_settings(desk: Desk, settings: Settings) -> None:
    """From now on; what a running request was promised by the settings before stays."""
    desk.settings = settings
    for request in desk.queue:
        desk.timers.wake_at(request.arrived_at + settings.max_wait_s)
    if not settings.preempt:
        desk.interruptible.clear()


def _take_engines(desk: Desk, specs: Iterable[EngineSpec]) -> None:
    named = {spec.engine_id: spec for spec in specs}
    for engine_id, spec in named.items():
        engine = desk.residents.get(engine_id)
        if engine is None:
            desk.residents.add(spec)
            continue
        if spec.options != engine.spec.options:
            # What was promised to it was counted in the bytes of before.
            desk.claims.drop(engine_id)
        desk.residents.respecify(engine, spec)
    for engine in list(desk.residents):
        engine.retired = engine.engine_id not in named


def _take_limits(desk: Desk, limits: Mapping[str, int]) -> None:
    """What other programs were found to hold is remembered."""
    for device, limit in limits.items():
        ledger = desk.residents.books[device]
        room = ledger.available_bytes if ledger.unjudged_since is None else None
        if room is None and ledger.ceiling_bytes < ledger.limit_bytes:
            room = ledger.ceiling_bytes
        ledger.ceiling_bytes = limit if room is None else min(limit, max(0, room))
        ledger.limit_bytes = limit
        desk.unsettled.add(device)


def _take_models(desk: Desk, event: Reconfigured) -> None:
    for engine in list(desk.residents):
        for model in list(engine.pins):
            desk.residents.unpin(engine, model)
    adopt(desk, event.models)
    desk.errors = {model: dict(error) for model, error in event.errors.items()}
    for model in sorted(desk.holders.called()):
        if model not in desk.models:
            desk.holders.unpin(model)
            continue
        desk.pin(desk.residents[desk.models[model].engine_id], model)


def _requeue(desk: Desk, now: float) -> None:
    """Those who wait follow their model to its new engine; a model that is gone ends them."""
    for request in desk.queue:
        entry = desk.models.get(request.model)
        if entry is None:
            desk.end(request, desk.why_unknown(request.model), now)
            continue
        if entry.engine_id != request.engine_id:
            desk.move(request, desk.residents[entry.engine_id])
