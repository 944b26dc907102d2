"""From a configuration to engines: files read, footprints measured, placements chosen.

Entries on one file with the same arguments get one engine. A model that cannot be prepared (its
file is missing or damaged, say) keeps its error, which its requests get; the others are not held up.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from backends.devices import Device, discover, is_rpc
from backends.footprint.inspect import Inspector, with_note
from backends.footprint.learned import LearnedStore
from backends.gguf import read_header
from backends.llama.engine import usable_cores
from backends.llama.rpc import rpc_devices
from budget.engines import Bookings, EngineSpec, ModelEntry, Option
from budget.errors import BadModelFile, ConfigError, KeepwarmError, LoadFailed
from budget.footprint import HOST, Placement
from budget.kv_store import carries_kv
from shim.config import Config
from shim.config import ModelEntry as ConfigEntry
from shim.planned.asked import asked_of, engine_args, side_files
from shim.planned.asked import local_path as local_path
from shim.planned.asked import stamp_of as stamp_of
from shim.planned.entry import Stamp
from shim.planned.file import usable_plan
from shim.planned.sizes import sized_args
from shim.planned.use import Decided, decide

FIXED_LOAD_S = 0.2
LOAD_BYTES_PER_S = 1.0e9
"""First guesses of what a load costs, until loads were seen."""

SEAT = " client"
"""What follows a device's name where its one connection is booked."""

LOG = logging.getLogger("keepwarm.keeper")


class ModelFile(Protocol):
    """What is known of a model's file: a header read now, or what a plan remembers of one."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or all shards."""

    @property
    def identity(self) -> str:
        """A key for caches: changes when a file is replaced or touched."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""

    @property
    def quantization(self) -> str:
        """What the tensors are."""

    @property
    def min_bits_per_weight(self) -> float:
        """Of the coarsest matrix."""


@dataclass(frozen=True, slots=True)
class CatalogEngine:
    """An engine that may be run: its file, its placements in order of preference, its names."""

    engine_id: str
    path: Path
    placements: tuple[Placement, ...]
    names: tuple[str, ...]
    stamp: Stamp
    architecture: str
    quantization: str
    min_bits_per_weight: float
    threads: int | None
    warm_prompt: str | None
    identity: str = ""
    carries_kv: bool = False

    @property
    def label(self) -> str:
        """What people call it: its models' names."""
        return "+".join(self.names)

    def spec(self) -> EngineSpec:
        """The engine as the core sees it. On a GPU, a split comes after whole, the CPU last."""
        size = sum(entry[1] for entry in self.stamp)
        seconds = FIXED_LOAD_S + size / LOAD_BYTES_PER_S
        options = tuple(
            Option(bookings_of(placement), seconds, tier, self._threads_of(placement))
            for tier, placement in enumerate(self.placements)
        )
        return EngineSpec(self.engine_id, options, self.placements[0].args.slots)

    def _threads_of(self, placement: Placement) -> int:
        """The cores that it computes on there; none where another device has all layers."""
        if placement.main_device != HOST and placement.args.n_gpu_layers >= placement.n_layers:
            return 0
        return self.threads or usable_cores()

    def corrected(self, option_index: int, placement: Placement) -> CatalogEngine:
        """The engine with another placement at one option."""
        placements = list(self.placements)
        placements[option_index] = placement
        return replace(self, placements=tuple(placements))


def seat(device: str) -> str:
    """The name in the books of an RPC device's one connection."""
    return f"{device}{SEAT}"


def bookings_of(placement: Placement) -> Bookings:
    """What a placement books: its bytes, and the connection of every RPC server that it uses.

    `ggml-rpc-server` serves one client at a time: a second engine would wait for the first to end.
    """
    used = [device for device in placement.args.devices if is_rpc(device)]
    return tuple(sorted([*placement.bookings, *((seat(device), 1) for device in used)]))


@dataclass(frozen=True, slots=True)
class Prepared:
    """One local model, read and placed."""

    name: str
    entry: ConfigEntry
    header: ModelFile
    placements: tuple[Placement, ...]
    engine_id: str
    stamp: Stamp
    carries_kv: bool = False


@dataclass(slots=True)
class Catalog:
    """Everything that the keeper knows of its models."""

    config: Config
    device: Device
    limits: dict[str, int]
    reserves: dict[str, int]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    errors: dict[str, KeepwarmError] = field(default_factory=dict)
    learned: LearnedStore = field(default_factory=LearnedStore)
    engines: dict[str, CatalogEngine] = field(default_factory=dict)

    @property
    def pools(self) -> dict[str, int]:
        """The limits as the core sees them: bytes by device, and one connection by RPC device."""
        return {**self.limits, **{seat(d): 1 for d in self.limits if is_rpc(d)}}

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
                p.name, p.engine_id, p.entry.pinned, float(p.entry.keep_alive), p.entry.priority
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
        ConfigError: the budget's device is not there.
    """
    device, limits, reserves = device_limits(config, previous)
    catalog = Catalog(config, device, limits, reserves)
    inspector = Inspector(learned=catalog.learned)
    if previous is not None:
        catalog.engines.update(previous.engines)
    local = {name: entry for name, entry in config.models.items() if not entry.remote}
    kept = {name for name in local if _reuse(catalog, previous, name)}
    _take_planned(catalog, {n: entry for n, entry in local.items() if n not in kept})
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = {
            name: pool.submit(prepare, name, entry, catalog, inspector)
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
    asked = {}
    for name, entry in local.items():
        with contextlib.suppress(KeepwarmError):
            asked[name] = asked_of(entry, catalog.device.name, catalog.config.budget.rpc)
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
    engine_id = _engine_id(facts, placements, entry)
    return Prepared(
        name, entry, facts, tuple(placements), engine_id, row.entry.stamp, row.entry.carries_kv
    )


def device_limits(
    config: Config, previous: Catalog | None = None
) -> tuple[Device, dict[str, int], dict[str, int]]:
    """The budgeted device; limit and reserve in bytes of it and of the host.

    RPC servers that `previous` has asked already are not asked again: one of its engines may be
    connected, and they serve one client at a time.

    Raises:
        ConfigError: the configured device is not there.
    """
    wanted = config.budget.device
    remote = _rpc_devices(config, previous) if is_rpc(wanted) else ()
    found = [*discover(), *remote]
    by_name = {device.name: device for device in found}
    if wanted == "auto":
        gpus = [device for device in found if device.kind == "cuda"]
        device = gpus[0] if gpus else by_name[HOST]
    elif wanted in by_name:
        device = by_name[wanted]
    else:
        raise ConfigError(
            f"[budget] device is {wanted!r}; this machine has {', '.join(sorted(by_name))}.",
            hint='Choose one of these, or "auto".',
        )
    host = by_name[HOST]
    limits = {HOST: host.total_bytes - config.budget.reserve_bytes(host.total_bytes)}
    limits[device.name] = config.budget.limit_bytes(device.total_bytes)
    reserves = {
        d.name: config.budget.reserve_bytes(d.total_bytes)
        for d in {device.name: device, HOST: host}.values()
    }
    return device, limits, reserves


def _rpc_devices(config: Config, previous: Catalog | None) -> tuple[Device, ...]:
    budget = config.budget
    if previous is None or previous.config.budget.rpc != budget.rpc:
        return rpc_devices(budget.rpc)
    known = previous.device
    return (known,) if known.name == budget.device else rpc_devices(budget.rpc)


def prepare(name: str, entry: ConfigEntry, catalog: Catalog, inspector: Inspector) -> Prepared:
    """Read one local model and choose its placements.

    Raises:
        KeepwarmError: why it cannot be run.
    """
    path = local_path(entry)
    if not path.is_file():
        raise LoadFailed(
            f"The file of {name} is not there: {path}.",
            hint=f"Put it there, or change [models.{name}] path.",
            file=str(path),
        )
    header = read_header(path)
    shape = header.shape()
    if entry.context_per_slot > shape.context_length > 0:
        raise ConfigError(
            f"{name}: {entry.context} tokens for {entry.slots} slots are "
            f"{entry.context_per_slot} a slot; the model was trained for {shape.context_length}.",
            hint=f"Lower [models.{name}] context to at most {shape.context_length * entry.slots}.",
        )
    device, args = catalog.device.name, engine_args(entry)
    if is_rpc(device):
        args = replace(args, rpc=catalog.config.budget.rpc)
    limit = catalog.limits[device]
    args, note = sized_args(args, entry, header, inspector, device=device, limit_bytes=limit)
    chosen = inspector.choose(header, args, device, limit, n_gpu_layers=entry.n_gpu_layers)
    placements = tuple(with_note(placement, note) for placement in chosen)
    if not placements:
        raise BadModelFile(f"{name}: no placement could be measured.", file=str(path))
    stamp = stamp_of([*header.files, *side_files(entry)])
    return Prepared(
        name,
        entry,
        header,
        placements,
        _engine_id(header, placements, entry),
        stamp,
        carries_kv(shape, placements[0].args),
    )


def _engine_id(header: ModelFile, placements: Sequence[Placement], entry: ConfigEntry) -> str:
    """What must be equal for two entries to share an engine."""
    # Not the bytes: a correction does not make it another engine.
    args = [p.args for p in placements]
    side = stamp_of(side_files(entry))
    text = repr((header.identity, args, side, entry.threads, entry.warm_prompt))
    return f"{header.files[0].stem}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


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
