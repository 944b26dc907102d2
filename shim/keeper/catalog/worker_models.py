"""Python models and servers: their files, the bytes booked for them, the devices that they may go to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.footprint.inspect import Inspector
from backends.python.python_engine import WorkerSpec
from backends.python.ready_made import READY_MADE
from backends.server.command import ServerSpec
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
    """What is known of such a model before it runs, in the form of a model's file."""

    files: tuple[Path, ...]
    identity: str
    architecture: str
    quantization: str = ""
    min_bits_per_weight: float | None = None


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


def server_spec(entry: ConfigEntry, name: str) -> ServerSpec:
    """How the server of a model is run."""
    return ServerSpec(
        command=entry.command or (),
        served=entry.model_id or name,
        can=frozenset(entry.can),
        ready=entry.ready,
        files=tuple(entry.files),
        cwd=Path(entry.cwd or "/"),
        env=entry.env,
        stop_signal=signal.Signals[f"SIG{entry.stop_signal}"] if entry.stop_signal else None,
    )


def worker_files(entry: ConfigEntry) -> list[Path]:
    """The files that a model is made of: its module where that lies in its folder, and those declared.

    A server's program is the first of them.
    """
    return [*_code(entry), *_declared(entry)]


def _code(entry: ConfigEntry) -> Iterator[Path]:
    """The file of the factory; the interpreter where it lies on the path of that."""
    if entry.command is not None:
        program = os.path.join(entry.cwd or "/", entry.command[0])  # noqa: PTH118
        yield Path(program if "/" in entry.command[0] else shutil.which(program) or program)
        return
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
    """Choose the placements of a Python model or a server; nothing is run.

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
    files = tuple(Path(row[0]) for row in stamp)
    facts = WorkerFacts(files, _identity(entry, stamp), entry.backend)
    args = EngineArgs(n_ctx=0, slots=int(entry.slots))
    source, size, reason = _bytes_of(entry, sum(row[1] for row in stamp))
    placed = tuple(
        with_learned(
            Placement(args, _parts(device, size), source, reason=reason), facts.identity, inspector
        )
        for device in devices_for(name, entry, devices)
    )
    return Prepared(name, entry, facts, placed, _engine_id(entry, facts, placed), stamp)


def _engine_id(entry: ConfigEntry, facts: WorkerFacts, placed: tuple[Placement, ...]) -> str:
    """The engine's id, equal for entries that make the same object in the same place."""
    made = [facts.identity, entry.slots, str(entry.bytes), [p.main_device for p in placed]]
    digest = hashlib.blake2b(repr(made).encode(), digest_size=4).hexdigest()
    return f"{(entry.factory or '').partition(':')[0]}-{digest}"


def _identity(entry: ConfigEntry, stamp: object) -> str:
    """A key of what is made, and from which files."""
    made: list[object] = [
        entry.factory,
        entry.options,
        str(entry.cwd),
        entry.python,
        entry.env,
        entry.threads,
    ]
    if entry.command is not None:
        made = [entry.command, entry.ready, entry.can, entry.model_id, entry.stop_signal]
        made += [str(entry.cwd), entry.env]
    text = json.dumps([made, stamp], sort_keys=True)
    return f"{entry.backend}:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


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
    """The placement, with what its engine took before; never less than what is declared."""
    if inspector.learned is None:
        return placement
    known = inspector.learned.get(identity, placement.args, inspector.build_key())
    if known is None:
        return placement
    learned = known.apply(placement)
    # The figures may have been learned while less was declared, or nothing.
    less = learned.total_bytes < placement.total_bytes
    return placement if placement.source == "declared" and less else learned
