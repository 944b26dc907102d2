"""From a configuration to engines: files read, footprints measured, placements chosen.

Entries on one file with the same arguments get one engine. A model that cannot be prepared (its
file is missing or damaged, say) keeps its error, which its requests get; other models are not held up.
`read_models` and `read_model` read and measure, and run in a thread. `catalog_of` and
`Catalog.with_model` make a catalog of the result without waiting.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from backends.footprint.inspect import Inspector
from backends.footprint.learned import LearnedStore
from backends.machine.devices import Device
from backends.machine.shortages import refused
from budget.books.engines import EngineSpec, ModelSpec
from budget.errors import (
    CallerError,
    ConfigError,
    InternalError,
    KeepwarmError,
    MeasurementFailed,
)
from budget.footprint import Placement
from shim.config import Config
from shim.config import ModelEntry as ConfigEntry
from shim.config.diff import changed_entry_keys
from shim.keeper.catalog.broken_models import BrokenModel
from shim.keeper.catalog.corrections import learned_store
from shim.keeper.catalog.entries import CatalogEngine as CatalogEngine
from shim.keeper.catalog.entries import Prepared as Prepared
from shim.keeper.catalog.preparing import (
    engine_id_of,
    forgotten_stamp,
    lie_far,
    prepare,
    watched_files,
)
from shim.placement.budgeted_devices import BudgetDevices, budget_devices
from shim.placement.from_plan import Decided, decide
from shim.placement.plan_file import usable_plan
from shim.placement.requested import asked_of, side_files, stamp_of

LOG = logging.getLogger("keepwarm.keeper")

Found = Prepared | BrokenModel
"""The result of reading one model."""


@dataclass(slots=True)
class Catalog:
    """Everything that the keeper knows of its models."""

    config: Config
    devices: BudgetDevices
    prepared: dict[str, Prepared] = field(default_factory=dict)
    broken_models: dict[str, BrokenModel] = field(default_factory=dict)
    learned: LearnedStore = field(default_factory=learned_store)
    engines: dict[str, CatalogEngine] = field(default_factory=dict)
    unpinned: set[str] = field(default_factory=set)
    """Models whose configured pin a hint has ended, until their configuration is read anew."""

    @property
    def device(self) -> Device:
        """The first of the devices."""
        return self.devices.first

    @property
    def errors(self) -> dict[str, KeepwarmError]:
        """The errors of models that cannot be run now, by model name."""
        unfit = {name: error for name, one in self.prepared.items() if (error := one.unfit)}
        return {**{name: broken.error for name, broken in self.broken_models.items()}, **unfit}

    @property
    def limits(self) -> Mapping[str, int]:
        """Bytes by device that may be booked."""
        return self.devices.limits

    @property
    def pools(self) -> dict[str, int]:
        """The limits in the core's form: bytes by device, and connections by RPC server."""
        return self.devices.pools

    def correct(self, engine_id: str, option_index: int, placement: Placement) -> CatalogEngine:
        """Change a placement of an engine for its next loads; returns the changed engine."""
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
        """The engines in the core's form."""
        return tuple(engine.spec() for engine in self.configured())

    def configured(self) -> list[CatalogEngine]:
        """The engines of the configuration, without engines that were configured before and still run."""
        current = {p.engine_id for p in self.prepared.values()}
        return [e for e in self.engines.values() if e.engine_id in current]

    def models(self) -> tuple[ModelSpec, ...]:
        """The models in the core's form."""
        return tuple(
            ModelSpec(
                p.name,
                p.engine_id,
                p.entry.pinned and p.name not in self.unpinned and p.unfit is None,
                p.entry.stays_s,
                p.entry.priority,
                p.entry.max_queue,
            )
            for p in self.prepared.values()
        )

    def known(self, name: str) -> Found | None:
        """The result of reading a model, or None if it was not read."""
        return self.prepared.get(name) or self.broken_models.get(name)

    def is_far(self, name: str) -> bool:
        """Whether a model's files lie on another machine, so that even a `stat` may hang."""
        known = self.known(name)
        return known is not None and known.far

    def is_ready(self, name: str) -> bool:
        """Whether a request for a model can go on at once. False also where checking the files may hang."""
        return name in self.prepared and not self.is_far(name) and not self.is_stale(name)

    def is_stale(self, name: str) -> bool:
        """Whether a model's files changed since they were read, or could not be read then.

        Or what was learned of them was forgotten.
        """
        prepared = self.prepared.get(name)
        if prepared is None:
            return True
        stamp = (*prepared.stamp, *prepared.forgotten)
        return stamp_of([row[0] for row in stamp]) != stamp

    def refusal(self, name: str, now_s: float) -> KeepwarmError | None:
        """The error that refuses a request at once; None when the model's files are to be read again."""
        broken = self.broken_models.get(name)
        if broken is None:
            return None
        stamp = stamp_of(watched_files(self.config.models[name]))
        return broken.refusal(now_s) if broken.holds(stamp, now_s) else None

    def stands(
        self, name: str, entry: ConfigEntry, limits: Mapping[str, int], now_s: float
    ) -> bool:
        """Whether the reading of a model also holds with another entry and other limits."""
        before = self.config.models.get(name)
        if before is None or changed_entry_keys(before, entry):
            return False
        if self.known(name) is None:
            return True  # its first request reads it
        if self.limits != limits:
            return False
        # Files on another machine are checked by every request; a reload does not wait for them.
        if self.is_far(name):
            return name in self.prepared
        return not self.is_stale(name) or self.refusal(name, now_s) is not None

    def with_model(self, name: str, found: Found) -> Catalog:
        """A copy of the catalog with a new reading of one model."""
        after = replace(
            self,
            prepared=dict(self.prepared),
            broken_models=dict(self.broken_models),
            engines=dict(self.engines),
        )
        after._take(name, found)
        after._share_engines()
        return after

    def keep_engines(self, running: Collection[str]) -> None:
        """Drop the engines that are neither configured nor running."""
        current = {engine.engine_id for engine in self.configured()}
        self.engines = {e: row for e, row in self.engines.items() if e in current or e in running}

    def _take(self, name: str, found: Found) -> None:
        self.prepared.pop(name, None)
        self.broken_models.pop(name, None)
        if isinstance(found, BrokenModel):
            self.broken_models[name] = found
        else:
            self.prepared[name] = found

    def _share_engines(self) -> None:
        names: dict[str, list[str]] = {}
        for prepared in self.prepared.values():
            names.setdefault(prepared.engine_id, []).append(prepared.name)
        for prepared in self.prepared.values():
            shared = tuple(names[prepared.engine_id])
            self.engines[prepared.engine_id] = prepared.engine(shared)


@dataclass(frozen=True, slots=True)
class CatalogReading:
    """The result of reading a configuration: its devices, and the models that had to be read.

    `anew`: the models whose configuration was read anew.
    """

    config: Config
    devices: BudgetDevices
    learned: LearnedStore
    found: Mapping[str, Found]
    anew: Collection[str] = ()


def build_catalog(config: Config) -> Catalog:
    """Read every local model of a configuration and choose its placements.

    Raises:
        ConfigError: a device of the budget is not there.
    """
    return catalog_of(read_models(config))


def read_models(config: Config, previous: Catalog | None = None) -> CatalogReading:
    """Read the local models of a configuration, except those whose reading in `previous` still holds.

    Raises:
        ConfigError: a device of the budget is not there.
    """
    devices = budget_devices(config, previous.devices if previous else None)
    learned = previous.learned if previous else learned_store()
    now_s = time.monotonic()
    local = {
        name: entry
        for name, entry in config.models.items()
        if not entry.remote
        and (previous is None or not previous.stands(name, entry, devices.limits, now_s))
    }
    broken_models = previous.broken_models if previous else {}
    return CatalogReading(config, devices, learned, _read(local, devices, learned, broken_models))


def read_changed(config: Config, previous: Catalog) -> CatalogReading:
    """Read the models whose settings changed. New models wait for their first request."""
    changed = {
        name: entry
        for name, entry in config.models.items()
        if previous.known(name) is not None
        and (before := previous.config.models.get(name)) is not None
        and changed_entry_keys(before, entry)
    }
    learned = previous.learned
    found = _read(changed, previous.devices, learned, {}) if changed else {}
    return CatalogReading(config, previous.devices, learned, found)


def read_model(catalog: Catalog, name: str) -> Found | None:
    """Read one model again; None when its present reading holds. Other models' files are not touched."""
    if not catalog.is_stale(name) or catalog.refusal(name, time.monotonic()) is not None:
        return None
    local = {name: catalog.config.models[name]}
    return _read(local, catalog.devices, catalog.learned, catalog.broken_models)[name]


def catalog_of(reading: CatalogReading, previous: Catalog | None = None) -> Catalog:
    """The catalog after a reading. Models that were not read are taken from `previous`.

    Engines of `previous` stay known by their ids, because some may still be running.
    """
    catalog = Catalog(reading.config, reading.devices, learned=reading.learned)
    if previous is not None:
        catalog.engines.update(previous.engines)
        catalog.unpinned = previous.unpinned - set(reading.anew)
    for name, entry in reading.config.models.items():
        found = reading.found.get(name)
        if found is None and previous is not None:
            found = previous.known(name)
        if found is not None and not entry.remote:
            catalog._take(name, found)
    catalog._share_engines()
    return catalog


def _read(
    local: Mapping[str, ConfigEntry],
    devices: BudgetDevices,
    learned: LearnedStore,
    broken_models: Mapping[str, BrokenModel],
) -> dict[str, Found]:
    found: dict[str, Found] = dict(_planned(local, devices, learned))
    inspector = Inspector(learned=learned)

    def read(name: str) -> Found:
        return _read_one(name, local[name], devices, inspector, broken_models.get(name))

    due = [name for name in local if name not in found]
    if len(due) < 2:
        # No thread pool for one model: if this thread is abandoned, no other thread is left behind.
        return found | {name: read(name) for name in due}
    with ThreadPoolExecutor(max_workers=2) as pool:
        return found | dict(zip(due, pool.map(read, due), strict=True))


def _read_one(
    name: str,
    entry: ConfigEntry,
    devices: BudgetDevices,
    inspector: Inspector,
    before: BrokenModel | None,
) -> Found:
    """The reading of one model; every failure becomes a `BrokenModel`."""
    watched = watched_files(entry)
    stamp = stamp_of(watched)
    why: KeepwarmError
    try:
        return prepare(name, entry, devices, inspector)
    except KeepwarmError as error:
        why = error
    except Exception as error:
        # A shortage of the machine (descriptors, threads, disk space) is no bug, and may end soon.
        short = refused(error, f"Model {name} cannot be read now")
        if short is not None:
            hint = f"{short.hint} The next request tries again."
            why = MeasurementFailed(short.message, hint=hint, model=name)
        else:
            LOG.exception("reading model %s", name)
            why = InternalError(f"reading model {name} failed: {type(error).__name__}: {error}.")
    far = lie_far(entry, watched)
    lasting = isinstance(why, CallerError)
    return BrokenModel.after(before, why, stamp, time.monotonic(), far=far, lasting=lasting)


def _planned(
    local: Mapping[str, ConfigEntry], devices: BudgetDevices, learned: LearnedStore
) -> dict[str, Prepared]:
    """The models that the placement plan covers, if it is valid here and their files did not change.

    No model file is opened. Models that the plan lacks are logged, and measured by the caller.
    """
    plan, refused = usable_plan()
    if plan is None:
        if refused:
            LOG.warning("%s The models are measured instead.", refused)
        return {}
    if len(devices.devices) > 1:
        LOG.info("the placement plan is for one device; for several the models are measured")
        return {}
    asked = {}
    for name, entry in local.items():
        if not entry.is_gguf:
            continue
        with contextlib.suppress(KeepwarmError):
            asked[name] = asked_of(entry, devices.first.name, devices.servers())
    try:
        found = decide(plan, asked, devices.limits)
    except ConfigError as error:
        LOG.warning(
            "the placement plan gives no joint decision: %s The models are measured instead.", error
        )
        return {}
    for name, why in found.missing.items():
        LOG.info("%s is not taken from the plan: %s", name, why)
    for line in found.changes:
        LOG.info("decided otherwise than the placement plan did: %s", line)
    return {
        name: _as_planned(name, local[name], learned, row, plan.build)
        for name, row in found.decided.items()
    }


def _as_planned(
    name: str, entry: ConfigEntry, learned: LearnedStore, row: Decided, build: str
) -> Prepared:
    facts = row.entry.facts
    placements = []
    for placement in row.placements:
        known = learned.get(facts.identity, placement.args, build)
        placements.append(known.apply(placement) if known else placement)
    side = stamp_of(side_files(entry))
    engine_id = engine_id_of(facts, placements, entry, side)
    return Prepared(
        name,
        entry,
        facts,
        tuple(placements),
        engine_id,
        row.entry.stamp,
        row.entry.carries_kv,
        lie_far(entry, facts.files),
        forgotten_stamp(learned, facts.identity),
    )
