"""From a configuration to engines: files read, footprints measured, placements chosen.

Entries on one file with the same arguments get one engine. A model that cannot be prepared (its
file is missing or damaged, say) keeps its error, which its requests get; the others are not held up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from backends.devices import Device, discover, is_rpc
from backends.footprint.inspect import choose_placement
from backends.gguf import GgufHeader, read_header
from backends.llama.rpc import rpc_devices
from budget.engines import EngineSpec, ModelEntry, Option
from budget.errors import BadModelFile, ConfigError, KeepwarmError, LoadFailed
from budget.footprint import HOST, EngineArgs, Placement
from shim.config import Config, fetch_hub_file
from shim.config import ModelEntry as ConfigEntry

FIXED_LOAD_S = 0.2
LOAD_BYTES_PER_S = 1.0e9
"""First guesses of what a load costs, until loads were seen."""

Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and modification time of every file that an engine reads."""


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

    @property
    def label(self) -> str:
        """What people call it: its models' names."""
        return "+".join(self.names)

    def spec(self) -> EngineSpec:
        """The engine as the core sees it. On a GPU, a split comes after whole, the CPU last."""
        size = sum(entry[1] for entry in self.stamp)
        seconds = FIXED_LOAD_S + size / LOAD_BYTES_PER_S
        options = tuple(
            Option(placement.bookings, seconds, tier)
            for tier, placement in enumerate(self.placements)
        )
        return EngineSpec(self.engine_id, options, self.placements[0].args.slots)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One local model, read and placed."""

    name: str
    entry: ConfigEntry
    header: GgufHeader
    placements: tuple[Placement, ...]
    engine_id: str
    stamp: Stamp


@dataclass(slots=True)
class Catalog:
    """Everything that the keeper knows of its models."""

    config: Config
    device: Device
    limits: dict[str, int]
    reserves: dict[str, int]
    prepared: dict[str, Prepared] = field(default_factory=dict)
    errors: dict[str, KeepwarmError] = field(default_factory=dict)
    engines: dict[str, CatalogEngine] = field(default_factory=dict)

    def label(self, engine_id: str) -> str:
        """The name of an engine, also of one that is no longer configured."""
        engine = self.engines.get(engine_id)
        return engine.label if engine else engine_id

    def specs(self) -> tuple[EngineSpec, ...]:
        """The engines as the core sees them."""
        current = {p.engine_id for p in self.prepared.values()}
        return tuple(e.spec() for e in self.engines.values() if e.engine_id in current)

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
        return (
            prepared is None or stamp_of([Path(row[0]) for row in prepared.stamp]) != prepared.stamp
        )


def build_catalog(config: Config, previous: Catalog | None = None) -> Catalog:
    """Read every local model of a configuration and choose its placements.

    Engines of `previous` stay known by their ids: some may still be running.

    Raises:
        ConfigError: the budget's device is not there.
    """
    device, limits, reserves = device_limits(config)
    catalog = Catalog(config, device, limits, reserves)
    if previous is not None:
        catalog.engines.update(previous.engines)
    local = {name: entry for name, entry in config.models.items() if not entry.remote}
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = {
            name: pool.submit(prepare, name, entry, device.name, limits, config.budget.rpc)
            for name, entry in local.items()
            if not _reuse(catalog, previous, name)
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


def device_limits(config: Config) -> tuple[Device, dict[str, int], dict[str, int]]:
    """The budgeted device; limit and reserve in bytes of it and of the host.

    Raises:
        ConfigError: the configured device is not there.
    """
    wanted = config.budget.device
    remote = rpc_devices(config.budget.rpc) if is_rpc(wanted) else ()
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


def engine_args(entry: ConfigEntry) -> EngineArgs:
    """The arguments of an engine as the configuration asks for them; layers are decided later."""
    kv_type_k, kv_type_v = entry.kv_types
    return EngineArgs(
        n_ctx=entry.context,
        slots=entry.slots,
        kv_type_k=kv_type_k,
        kv_type_v=kv_type_v,
        flash_attention=entry.flash_attention,
        n_batch=entry.n_batch,
        n_ubatch=entry.n_ubatch,
        repack=entry.repack,
        embeddings=entry.role == "embedder",
        mmproj=str(entry.mmproj) if entry.mmproj else None,
        draft_model=str(entry.draft_model) if entry.draft_model else None,
        lora=tuple(str(path) for path in entry.lora),
        extra=tuple(entry.engine_args),
    )


def prepare(
    name: str,
    entry: ConfigEntry,
    device: str,
    limits: Mapping[str, int],
    rpc: tuple[str, ...] = (),
) -> Prepared:
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
    args = replace(engine_args(entry), rpc=rpc)
    placements = tuple(
        choose_placement(header, args, device, limits[device], n_gpu_layers=entry.n_gpu_layers)
    )
    if not placements:
        raise BadModelFile(f"{name}: no placement could be measured.", file=str(path))
    stamp = stamp_of([*header.files, *_side_files(entry)])
    return Prepared(name, entry, header, placements, _engine_id(header, placements, entry), stamp)


def local_path(entry: ConfigEntry) -> Path:
    """The GGUF file of a local entry; one on the Hugging Face Hub is downloaded when missing."""
    if entry.hf is not None:
        return fetch_hub_file(entry.hf)
    if entry.path is None:
        raise ConfigError("The model has neither path nor hf.")
    return Path(entry.path)


def stamp_of(paths: Sequence[Path]) -> Stamp:
    """Size and modification time of files; a missing one counts as empty."""
    rows = []
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116 - on the path of every request
            rows.append((str(path), found.st_size, found.st_mtime_ns))
        except OSError:
            rows.append((str(path), 0, 0))
    return tuple(rows)


def _side_files(entry: ConfigEntry) -> list[Path]:
    single = [path for path in (entry.mmproj, entry.draft_model) if path is not None]
    return [*single, *entry.lora]


def _engine_id(header: GgufHeader, placements: Sequence[Placement], entry: ConfigEntry) -> str:
    """What must be equal for two entries to share an engine."""
    args = [(p.args, p.bookings) for p in placements]
    side = stamp_of(_side_files(entry))
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
        )
