"""Another configuration while the keeper runs: what did not change stays warm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from budget.admission.pins import check_pins
from budget.admission.state import CoreState
from budget.books.engines import NO_TIMEOUT, EngineRecord, EngineSpec, ModelSpec
from budget.books.states import DORMANT
from budget.errors import ConfigError
from budget.events import Reconfigured
from budget.eviction.policies.lru import Lru
from budget.settings import CoreSettings


def adopt(state: CoreState, models: Iterable[ModelSpec]) -> None:
    """Take over the model entries; a shared engine is pinned if any entry is.

    Raises:
        ConfigError: an entry names an engine that does not exist.
    """
    entries = {entry.name: entry for entry in models}
    for entry in entries.values():
        if entry.engine_id not in state.residents:
            raise ConfigError(f"Model {entry.name} names unknown engine {entry.engine_id!r}.")
    state.models = entries
    state.holders.configure({name for name, entry in entries.items() if entry.pinned})
    for entry in entries.values():
        if entry.pinned:
            state.pin(state.residents[entry.engine_id], entry.name)
    for engine_id, keep_alive_s in longest_keep_alives(entries.values()).items():
        engine = state.residents[engine_id]
        engine.keep_alive_s = keep_alive_s
        state.restless[engine_id] = engine


def longest_keep_alives(entries: Iterable[ModelSpec]) -> dict[str, float]:
    """Seconds by engine: the longest of the models that share it."""
    longest: dict[str, float] = {}
    for entry in entries:
        before = longest.get(entry.engine_id, 0.0)
        forever = NO_TIMEOUT in (before, entry.keep_alive_s)
        longest[entry.engine_id] = NO_TIMEOUT if forever else max(before, entry.keep_alive_s)
    return longest


def reconfigure(state: CoreState, event: Reconfigured, now: float) -> None:
    """Take over models, engines and limits; engines that are gone leave when no request leases them."""
    before = {name: entry.engine_id for name, entry in state.models.items()}
    if event.settings is not None:
        _take_settings(state, event.settings)
    _take_engines(state, event.engines)
    _take_limits(state, event.limits)
    _take_models(state, event)
    follow(state, before)
    _requeue(state, now)
    for engine in list(state.residents):
        state.restless[engine.engine_id] = engine
        drop_if_retired(state, engine)
    for claim in state.claims:
        if not (claim.engine.demand or claim.engine.pins):
            state.claims.drop(claim.engine.engine_id)
    state.fitting.place_pins()


def drop_if_retired(state: CoreState, engine: EngineRecord) -> None:
    """Forget an engine that is no longer configured and holds nothing."""
    if engine.retired and engine.state in DORMANT:
        state.forget(engine)


def follow(state: CoreState, before: dict[str, str]) -> None:
    """Declared uses and policy go on with the engines that run their models now.

    `before`: by model, the engine that ran it.
    """
    engine_of = {name: entry.engine_id for name, entry in state.models.items()}
    state.declared_uses.follow(engine_of)
    successors: dict[str, str] = {}
    for model, engine_id in before.items():
        after = engine_of.get(model)
        if after is not None and after != engine_id and state.residents[engine_id].retired:
            successors.setdefault(engine_id, after)
    state.faults.forgive()
    state.policy.reconfigured(successors)


def check_configuration(state: CoreState, event: Reconfigured) -> None:
    """Raise `ConfigError` unless the new configuration, with the pins of callers, holds."""
    devices = {ledger.device for ledger in state.residents.books}
    if set(event.limits) != devices:
        raise ConfigError(
            f"The devices changed from {sorted(devices)} to {sorted(event.limits)}.",
            hint="Other [budget] devices need a restart: `keepwarm keeper stop`.",
        )
    pins = state.holders.called()
    # A core state of the new configuration alone says whether it holds, before anything changes here.
    trial = CoreState(event.limits, event.engines, Lru(), state.settings)
    adopt(trial, (replace(m, pinned=m.pinned or m.name in pins) for m in event.models))
    check_pins(trial)


def _take_settings(state: CoreState, settings: CoreSettings) -> None:
    """From now on; what a running request was promised by the settings before stays."""
    state.settings = settings
    for request in state.queue:
        state.timers.wake_at(request.arrived_at + settings.max_wait_s)
    if not settings.preempt:
        state.interruptible.clear()


def _take_engines(state: CoreState, specs: Iterable[EngineSpec]) -> None:
    named = {spec.engine_id: spec for spec in specs}
    for engine_id, spec in named.items():
        engine = state.residents.get(engine_id)
        if engine is None:
            state.residents.add(spec)
            continue
        if spec.options != engine.spec.options:
            # What was promised to it was counted in the bytes of before.
            state.claims.drop(engine_id)
        state.residents.respecify(engine, spec)
    for engine in list(state.residents):
        engine.retired = engine.engine_id not in named


def _take_limits(state: CoreState, limits: Mapping[str, int]) -> None:
    """What other programs were found to hold is remembered."""
    for device, limit in limits.items():
        ledger = state.residents.books[device]
        room = ledger.available_bytes if ledger.unjudged_since is None else None
        if room is None and ledger.ceiling_bytes < ledger.limit_bytes:
            room = ledger.ceiling_bytes
        ledger.ceiling_bytes = limit if room is None else min(limit, max(0, room))
        ledger.limit_bytes = limit
        state.unsettled.add(device)


def _take_models(state: CoreState, event: Reconfigured) -> None:
    for engine in list(state.residents):
        for model in list(engine.pins):
            state.residents.unpin(engine, model)
    adopt(state, event.models)
    state.errors = {model: dict(error) for model, error in event.errors.items()}
    for model in sorted(state.holders.called()):
        if model not in state.models:
            state.holders.unpin(model)
            continue
        state.pin(state.residents[state.models[model].engine_id], model)


def _requeue(state: CoreState, now: float) -> None:
    """Let waiting requests follow their model to its new engine, or end them where it is gone."""
    for request in state.queue:
        entry = state.models.get(request.model)
        if entry is None:
            state.end(request, state.why_unknown(request.model), now)
            continue
        if entry.engine_id != request.engine_id:
            state.move(request, state.residents[entry.engine_id])
