"""From a configuration to engines: files read, footprints measured, placements chosen.

Entries on one file with the same arguments get one engine. A model that cannot be prepared (its
file is missing or damaged, say) keeps its error, which its requests get; the others are not held up.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from backends.devices import Device
from backends.footprint.inspect import Inspector
from backends.footprint.learned import LearnedStore
from budget.engines import EngineSpec, ModelEntry
from budget.errors import ConfigError, KeepwarmError
from budget.footprint import Placement
from shim.config import Config
from shim.config import ModelEntry as ConfigEntry
from shim.keeper.corrections import learned_store
from shim.keeper.devices import BudgetDevices, budget_devices
from shim.keeper.engines import CatalogEngine as CatalogEngine
from shim.keeper.engines import Prepared as Prepared
from shim.keeper.preparing import engine_id_of, prepare
from shim.planned.asked import asked_of, stamp_of
from shim.planned.file import usable_plan
from shim.planned.use import Decided, decide

LOG = logging.getLogger("keepwarm.keeper")


@dataclass(slots=True)
class Catalog:
    """Everything that the keeper knows of its models."""

    config: Config
    devices: BudgetDevices
    prepared: dict[str, Prepared] = field(default_factory=dict)
    errors: dict[str, KeepwarmError] = field(default_factory=dict)
    learned: LearnedStore = field(default_factory=learned_store)
    engines: dict[str, CatalogEngine] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        """The first of the devices."""
        return self.devices.first

    @property
    def limits(self) -> Mapping[str, int]:
        """Bytes by device that may be booked."""
        return self.devices.limits

    @property
    def pools(self) -> dict[str, int]:
        """The limits as the core sees them."""
        return self.devices.pools

    def correct(self, engine_id: str, option_index: int, placement: Placement) -> CatalogEngine:
        """Book another figure for the next loads of an engine; returns it as it is known now."""
        engine = self.engines[engine_id].corrected(option_index, placement)
        self.engines[engine_id] = engine
        for name, prepared in self.prepared.items():
            if prepared.engine_id == engine_id:
                self.prepared[name] = replace(prepared, placements=engine.placements)
        return engine

    def label(self, engine_id: str) -> str:
        """The name of an engine, also of one that is no longer configured."""
        engine = self.engines.get(engine_id)
        return engine.label if engine else engine_id

    def specs(self) -> tuple[EngineSpec, ...]:
        """The engines as the core sees them."""
        return tuple(engine.spec() for engine in self.configured())

    def configured(self) -> list[CatalogEngine]:
        """The engines of the configuration, without those that only still run."""
        current = {p.engine_id for p in self.prepared.values()}
        return [e for e in self.engines.values() if e.engine_id in current]

    def models(self) -> tuple[ModelEntry, ...]:
        """The model names as the core sees them."""
        return tuple(
            ModelEntry(
                p.name,
                p.engine_id,
                p.entry.pinned,
                float(p.entry.keep_alive),
                p.entry.priority,
                p.entry.max_queue,
            )
            for p in self.prepared.values()
        )

    def is_stale(self, name: str) -> bool:
        """Whether a model's files changed since they were read, or could not be read then."""
        prepared = self.prepared.get(name)
        return prepared is None or stamp_of([row[0] for row in prepared.stamp]) != prepared.stamp


def build_catalog(config: Config, previous: Catalog | None = None) -> Catalog:
    """Read every local model of a configuration and choose its placements.

    Engines of `previous` stay known by their ids: some may still be running.

    Raises:
        ConfigError: a device of the budget is not there.
    """
    devices = budget_devices(config, previous.devices if previous else None)
    catalog = Catalog(config, devices)
    inspector = Inspector(learned=catalog.learned)
    if previous is not None:
        catalog.engines.update(previous.engines)
    local = {name: entry for name, entry in config.models.items() if not entry.remote}
    kept = {name for name in local if _reuse(catalog, previous, name)}
    _take_planned(catalog, {n: entry for n, entry in local.items() if n not in kept})
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = {
            name: pool.submit(prepare, name, entry, devices, inspector)
            for name, entry in local.items()
            if name not in catalog.prepared
        }
    for name, job in jobs.items():
        try:
            catalog.prepared[name] = job.result()
        except KeepwarmError as error:
            catalog.errors[name] = error
    _share_engines(catalog)
    return catalog


def _reuse(catalog: Catalog, previous: Catalog | None, name: str) -> bool:
    """Take a model over from the catalog before, when nothing about it changed."""
    if previous is None or previous.limits != catalog.limits or previous.is_stale(name):
        return False
    known = previous.prepared[name]
    if known.entry != catalog.config.models[name]:
        return False
    catalog.prepared[name] = known
    return True


def _take_planned(catalog: Catalog, local: Mapping[str, ConfigEntry]) -> None:
    """Take models from the plan, where it is good here and their files did not change.

    No model file is opened. What the plan does not have is left to be measured, and said.
    """
    plan, refused = usable_plan()
    if plan is None:
        if refused:
            LOG.warning("%s The models are measured instead.", refused)
        return
    if len(catalog.devices.devices) > 1:
        LOG.info("the plan is for one device; for several the models are measured")
        return
    asked = {}
    for name, entry in local.items():
        with contextlib.suppress(KeepwarmError):
            asked[name] = asked_of(entry, catalog.device.name, catalog.devices.servers())
    try:
        found = decide(plan, asked, catalog.limits)
    except ConfigError as error:
        LOG.warning("the plan gives no joint decision: %s The models are measured instead.", error)
        return
    for name, why in found.missing.items():
        LOG.info("%s is not taken from the plan: %s", name, why)
    for line in found.changes:
        LOG.info("decided otherwise than the plan did: %s", line)
    for name, row in found.decided.items():
        catalog.prepared[name] = _planned(name, local[name], catalog, row, plan.build)


def _planned(name: str, entry: ConfigEntry, catalog: Catalog, row: Decided, build: str) -> Prepared:
    facts = row.entry.facts
    placements = []
    for placement in row.placements:
        learned = catalog.learned.get(facts.identity, placement.args, build)
        placements.append(learned.apply(placement) if learned else placement)
    engine_id = engine_id_of(facts, placements, entry)
    return Prepared(
        name, entry, facts, tuple(placements), engine_id, row.entry.stamp, row.entry.carries_kv
    )


def _share_engines(catalog: Catalog) -> None:
    names: dict[str, list[str]] = {}
    for prepared in catalog.prepared.values():
        names.setdefault(prepared.engine_id, []).append(prepared.name)
    for prepared in catalog.prepared.values():
        header = prepared.header
        catalog.engines[prepared.engine_id] = CatalogEngine(
            prepared.engine_id,
            header.files[0],
            prepared.placements,
            tuple(names[prepared.engine_id]),
            prepared.stamp,
            header.architecture,
            header.quantization,
            header.min_bits_per_weight,
            prepared.entry.threads,
            prepared.entry.warm_prompt,
            header.identity,
            prepared.carries_kv,
        )
