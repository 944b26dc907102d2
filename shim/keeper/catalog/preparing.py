"""Reads one configured model and chooses its placements."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from backends.footprint.inspect import Inspector, with_note
from backends.footprint.learned import LearnedStore
from backends.footprint.placing import placements
from backends.gguf import GgufHeader, read_header
from backends.kinds import Backend
from backends.llama.model_files import model_files
from backends.machine.devices import is_rpc
from backends.machine.files.mounts import is_far
from budget.errors import LoadFailed
from budget.eviction.kv_store import carries_kv
from budget.footprint import Placement
from shim.config import ModelEntry as ConfigEntry
from shim.keeper.catalog.entries import ModelFile, Prepared
from shim.keeper.catalog.model_checks import faults
from shim.keeper.catalog.vllm_models import folder_files, prepare_vllm
from shim.keeper.catalog.worker_models import prepare_worker, worker_files
from shim.placement.budgeted_devices import BudgetDevices
from shim.placement.plan_entry import Stamp
from shim.placement.requested import engine_args, local_path, side_files, stamp_of
from shim.placement.shrinking import sized_args


def prepare(
    name: str, entry: ConfigEntry, devices: BudgetDevices, inspector: Inspector
) -> Prepared:
    """Read one local model and choose its placements, as its kind does that.

    Raises:
        KeepwarmError: why it cannot be run.
    """
    return _BY_KIND[entry.backend](name, entry, devices, inspector)


def _prepare_gguf(
    name: str, entry: ConfigEntry, devices: BudgetDevices, inspector: Inspector
) -> Prepared:
    # The stamp is taken before the files are read, so that a change during the reading shows.
    side = stamp_of(side_files(entry))
    header = read_header(_there(name, local_path(entry)))
    for key, error in faults(name, entry, header):
        # An evaluator under the floor, its only fault of that kind, is for callers that override it.
        if (key, entry.role) != ("role", "evaluator"):
            raise error
    shape = header.shape()
    args = engine_args(entry)
    args = replace(args, rpc=() if args.binding else devices.servers())
    args, note = sized_args(args, entry, header, inspector, devices.limits)
    layers, limits = entry.n_gpu_layers, devices.layer_limits
    if args.binding:
        limits = {name: limit for name, limit in limits.items() if not is_rpc(name)}
    chosen = placements(inspector, header, args, limits, n_gpu_layers=layers)
    placed = tuple(with_note(placement, note) for placement in chosen)
    return Prepared(
        name,
        entry,
        header,
        placed,
        engine_id_of(header, placed, entry, side),
        (*_stamp_of(header), *side),
        not args.binding and carries_kv(shape, placed[0].args),
        lie_far(entry, header.files),
        forgotten_stamp(inspector.learned, header.identity),
    )


_BY_KIND: Final[
    Mapping[Backend, Callable[[str, ConfigEntry, BudgetDevices, Inspector], Prepared]]
] = {
    "llama.cpp": _prepare_gguf,
    "llama-cpp-python": _prepare_gguf,
    "python": prepare_worker,
    "server": prepare_worker,
    "vllm": prepare_vllm,
}
"""How each kind that keepwarm starts gets its placements."""


def forgotten_stamp(learned: LearnedStore | None, identity: str) -> Stamp:
    """The stamp of the file that changes when what was learned of a model's file is forgotten."""
    return () if learned is None else stamp_of([learned.marker(identity)])


def watched_files(entry: ConfigEntry) -> list[Path]:
    """The files of a broken model: when one of them changes, preparing it is tried again.

    Empty for a model that is not downloaded yet.
    """
    if entry.backend in ("python", "server"):
        return worker_files(entry)
    if entry.backend == "vllm":
        return folder_files(entry)
    own = [] if entry.path is None else model_files(Path(entry.path))
    return [*own, *side_files(entry)]


def lie_far(entry: ConfigEntry, files: Iterable[Path]) -> bool:
    """Whether any file of a model lies on another machine."""
    return any(is_far(path) for path in {*files, *side_files(entry)})


def _there(name: str, path: Path) -> Path:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise LoadFailed(
            f"The file of {name} is not there: {path}.",
            hint=f"Put it there, or change [models.{name}] path.",
            file=str(path),
        ) from None
    except (OSError, ValueError):
        pass  # the error of reading the file says more
    return path


def _stamp_of(header: GgufHeader) -> Stamp:
    """The stamp of the files that were read, in the form of `stamp_of`."""
    rows = zip(header.files, header.identities, strict=True)
    return tuple((str(path), found.n_bytes, found.mtime_ns) for path, found in rows)


def engine_id_of(
    header: ModelFile, placed: Sequence[Placement], entry: ConfigEntry, side: Stamp
) -> str:
    """The engine's id, equal for entries that can share an engine. `side`: the stamp of its side files."""
    # Bytes are not part of the id, because a correction does not make another engine.
    args = [p.args for p in placed]
    text = repr((header.identity, args, side, entry.threads, entry.warm_prompt, entry.llama_server))
    # Half surrogates, of a file name that is not UTF-8, are no part of an id.
    stem = header.files[0].stem.encode("utf-8", "replace").decode()
    return f"{stem}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
