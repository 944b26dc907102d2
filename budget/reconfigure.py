"""Another configuration while the keeper runs: what did not change stays warm."""

from __future__ import annotations

from dataclasses import replace

from budget.desk import Desk
from budget.engines import EngineRecord
from budget.errors import ConfigError
from budget.events import Reconfigured
from budget.pins import check_pins
from budget.policies.lru import Lru
from budget.residency import DORMANT
from budget.settings import Settings


def reconfigure(desk: Desk, event: Reconfigured, now: float) -> None:
    """Take over models, engines and limits; engines that are gone leave when nobody leases them.

    Raises:
        ConfigError: the new configuration does not hold; nothing changed.
    """
    _check(desk, event)
    if event.settings is not None:
        _take_settings(desk, event.settings)
    _take_engines(desk, event)
    _take_models(desk, event)
    _requeue(desk, now)
    for engine in list(desk.residents):
        desk.restless[engine.engine_id] = engine
        drop_if_retired(desk, engine)
    for claim in desk.claims:
        if not (claim.engine.demand or claim.engine.pins):
            desk.claims.drop(claim.engine.engine_id)
    desk.fitting.place_pins()
    for device, limit in event.limits.items():
        ledger = desk.residents.books[device]
        unmeasured = ledger.ceiling_bytes == ledger.limit_bytes
        ledger.ceiling_bytes = limit if unmeasured else min(limit, ledger.ceiling_bytes)
        ledger.limit_bytes = limit
        desk.unsettled.add(device)


def drop_if_retired(desk: Desk, engine: EngineRecord) -> None:
    """Forget an engine that is no longer configured and holds nothing."""
    if engine.retired and engine.state in DORMANT:
        desk.claims.drop(engine.engine_id)
        desk.restless.pop(engine.engine_id, None)
        desk.residents.drop(engine)


def _check(desk: Desk, event: Reconfigured) -> None:
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
    trial.adopt(replace(m, pinned=m.pinned or m.name in pins) for m in event.models)
    check_pins(trial)


def _take_settings(desk: Desk, settings: Settings) -> None:
    """From now on; what a running request was promised by the settings before stays."""
    desk.settings = settings
    for request in desk.queue:
        desk.timers.wake_at(request.arrived_at + settings.max_wait_s)
    if not settings.preempt:
        desk.interruptible.clear()


def _take_engines(desk: Desk, event: Reconfigured) -> None:
    kept = {spec.engine_id for spec in event.engines}
    for spec in event.engines:
        if spec.engine_id not in desk.residents:
            desk.residents.add(spec)
        elif len(spec.options) == len(desk.residents[spec.engine_id].spec.options):
            desk.residents.estimate(desk.residents[spec.engine_id], spec.options)
    for engine in list(desk.residents):
        engine.retired = engine.engine_id not in kept


def _take_models(desk: Desk, event: Reconfigured) -> None:
    for engine in list(desk.residents):
        for model in list(engine.pins):
            desk.residents.unpin(engine, model)
    desk.adopt(event.models)
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
            after = desk.residents[entry.engine_id]
            desk.dequeue(request)
            request.engine_id = after.engine_id
            request.seen_generation = after.generation if after.resident else -1
            desk.enqueue(request)
