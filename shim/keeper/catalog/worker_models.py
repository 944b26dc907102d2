"""Python models: their files, the bytes that are booked for them, and the devices that they may go to."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.footprint.inspect import Inspector
from backends.python.python_engine import WorkerSpec
from backends.python.ready_made import READY_MADE
from budget.errors import ConfigError, LoadFailed
from budget.footprint import HOST, EngineArgs, Footprint, Placement, Source
from shim.config import ModelEntry as ConfigEntry
from shim.keeper.catalog.entries import Prepared
from shim.placement.budgeted_devices import BudgetDevices
from shim.placement.requested import stamp_of

GUESS_BYTES: Final = 1 << 30
"""Booked for the first load of a model that declares neither `bytes` nor `files`."""
BESIDE_GPU_BYTES: Final = 512 << 20
"""The host's bytes of a process that computes on a GPU, until they are measured."""
MOST_FILES: Final = 4096


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What is known of a Python model before it is made, in the form of a model's file."""

    files: tuple[Path, ...]
    identity: str
    architecture: str = "python"
    quantization: str = ""
    min_bits_per_weight: float = 0.0


def worker_spec(entry: ConfigEntry) -> WorkerSpec:
    """What the worker of a model makes."""
    return WorkerSpec(
        factory=entry.factory or "",
        options=entry.options,
        cwd=Path(entry.cwd or "/"),
        python=entry.python,
        files=tuple(entry.files),
        env=entry.env,
        threads=entry.threads,
    )


def worker_files(entry: ConfigEntry) -> list[Path]:
    """The files that a model is made of: its module where that lies in its folder, and those declared."""
    return [*_code(entry), *_declared(entry)]


def _code(entry: ConfigEntry) -> Iterator[Path]:
    """The file of the factory; the interpreter where it lies on the path of that."""
    factory = entry.factory or ""
    if factory in READY_MADE:
        yield READY_MADE[factory][0]
        return
    parts = factory.partition(":")[0].split(".")
    beside = Path(entry.cwd or "/").joinpath(*parts)
    found = (beside.with_name(f"{beside.name}.py"), beside / "__init__.py")
    yield next((path for path in found if path.is_file()), Path(entry.python or sys.executable))


def _declared(entry: ConfigEntry) -> Iterator[Path]:
    for path in entry.files:
        inside = sorted(path.rglob("*"))[:MOST_FILES] if path.is_dir() else [path]
        yield from (each for each in inside if not each.is_dir())


def prepare_worker(
    name: str, entry: ConfigEntry, devices: BudgetDevices, inspector: Inspector
) -> Prepared:
    """Choose the placements of a Python model; nothing is run.

    Raises:
        ConfigError: its device is not budgeted.
        LoadFailed: a file that it declares is not there.
    """
    stamp = stamp_of(worker_files(entry))
    for path in entry.files:
        if not path.exists():
            raise LoadFailed(
                f"A file of {name} is not there: {path}.",
                hint=f"Put it there, or change [models.{name}] files.",
                file=str(path),
            )
    facts = WorkerFacts(tuple(Path(row[0]) for row in stamp), _identity(entry, stamp))
    args = EngineArgs(n_ctx=0, slots=int(entry.slots))
    source, size, reason = _bytes_of(entry, sum(row[1] for row in stamp))
    placed = tuple(
        with_learned(
            Placement(args, _parts(device, size), source, reason=reason), facts.identity, inspector
        )
        for device in devices_for(name, entry, devices)
    )
    text = f"{facts.identity}{entry.slots}{[p.main_device for p in placed]}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    engine_id = f"{name.rpartition('/')[2]}-{digest}"
    return Prepared(name, entry, facts, placed, engine_id, stamp)


def _identity(entry: ConfigEntry, stamp: object) -> str:
    """A key of what is made, and from which files."""
    made = [entry.factory, entry.options, str(entry.cwd), entry.python, entry.env, entry.threads]
    text = json.dumps([made, stamp], sort_keys=True)
    return f"python:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _bytes_of(entry: ConfigEntry, file_bytes: int) -> tuple[Source, int, str]:
    """Where the first booking is from, its bytes, and that in words."""
    if entry.bytes is not None:
        return (
            "declared",
            entry.bytes.resolve(0),
            "its bytes are those that the configuration declares",
        )
    if entry.files:
        return (
            "files",
            file_bytes,
            "no bytes are declared: the sizes of its files, until it is measured",
        )
    told = "neither bytes nor files are declared: 1 GiB, until it is measured"
    return "guess", GUESS_BYTES, told


def _parts(device: str, size: int) -> dict[str, Footprint]:
    if device == HOST:
        return {HOST: Footprint(weights_bytes=size)}
    beside = Footprint(overhead_bytes=min(size, BESIDE_GPU_BYTES))
    return {device: Footprint(weights_bytes=size), HOST: beside}


def devices_for(name: str, entry: ConfigEntry, devices: BudgetDevices) -> tuple[str, ...]:
    """The devices that a model may go to, each as good as the others."""
    here = {device.name: device for device in devices.devices if not device.name.startswith("RPC")}
    if entry.device == "auto":
        return tuple(here) or (HOST,)
    if entry.device == HOST:
        return (HOST,)
    for device in here.values():
        if entry.device in (device.name, device.uuid):
            return (device.name,)
    raise ConfigError(
        f"[models.{name}] device is {entry.device!r}; budgeted are {', '.join(here)}.",
        hint='Choose among these, "host" or "auto".',
        device=entry.device,
    )


def with_learned(placement: Placement, identity: str, inspector: Inspector) -> Placement:
    """The placement, with what its engine took before."""
    if inspector.learned is None:
        return placement
    known = inspector.learned.get(identity, placement.args, inspector.build_key())
    return known.apply(placement) if known else placement
