"""One model's entry in the placement plan: its file, its bytes by n_gpu_layers, its measured times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from backends.footprint.cache import named
from backends.foreign.json_shapes import real, rows, table, text, whole
from budget.footprint import HOST, EngineArgs, Footprint, Source
from budget.placement.tables import Variant

Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and modification time of every file that an engine reads."""

_MOST_LAYERS: Final = 1 << 12
_MOST_TOKENS: Final = 1 << 31
_MOST_SECONDS: Final = 1e7
_ANY_ARGS: Final = EngineArgs(n_ctx=1)
_MAYBE_TEXT: Final = frozenset({"mmproj", "draft_model"})


@dataclass(frozen=True, slots=True)
class PlanPoint:
    """The footprints by device at one n_gpu_layers, and the arguments that belong to it."""

    n_gpu_layers: int
    devices: Mapping[str, Footprint]
    args: EngineArgs
    source: Source = "dry-run"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The points that were measured with one context and one number of slots.

    `token_s` are predicted seconds of a token by n_gpu_layers, 0 to n_layers + 1 (0 alone on a
    machine without another device).
    """

    n_ctx: int
    slots: int
    points: tuple[PlanPoint, ...]
    token_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The facts of a model file that the catalog needs, without its header."""

    files: tuple[Path, ...]
    identity: str
    architecture: str
    quantization: str
    min_bits_per_weight: float


@dataclass(frozen=True, slots=True)
class Entry:
    """Everything known of one model with one engine's arguments on one device.

    `carries_kv` says whether restored KV state spares its engine prompt evaluation.
    """

    stamp: Stamp
    facts: FileFacts
    n_layers: int
    device: str
    variants: tuple[Sizes, ...]
    load_s: float
    carries_kv: bool = False
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable data; `from_json` is the inverse."""
        data = asdict(self)
        data["facts"]["files"] = [str(path) for path in self.facts.files]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        """The entry that `to_json` described.

        Raises:
            KeyError, TypeError, ValueError: the data is something else, or does not add up.
        """
        n_layers, device = whole(data["n_layers"], 1, _MOST_LAYERS), text(data["device"])
        # The length of the planner's table: every number of layers, with the output layer.
        counts = 1 if device == HOST else n_layers + 2
        variants = tuple(_sizes(table(row), counts) for row in rows(data["variants"]))
        if not variants:
            raise ValueError("an entry without a size")
        return cls(
            tuple(_stamped(row) for row in rows(data["stamp"])),
            _facts(table(data["facts"])),
            n_layers,
            device,
            variants,
            real(data["load_s"], most=_MOST_SECONDS),
            data["carries_kv"] is True,
            {name: real(value) for name, value in table(data["measured"]).items()},
        )


def _stamped(row: object) -> tuple[str, int, int]:
    path, size, mtime_ns = rows(row)
    return text(path), whole(size), whole(mtime_ns, -(1 << 63), 1 << 63)


def _facts(data: Mapping[str, Any]) -> FileFacts:
    files = tuple(Path(text(path)) for path in rows(data["files"]))
    if not files:
        raise ValueError("an entry without a file")
    return FileFacts(
        files,
        text(data["identity"]),
        text(data["architecture"]),
        text(data["quantization"]),
        real(data["min_bits_per_weight"], most=64.0),
    )


def _sizes(data: Mapping[str, Any], counts: int) -> Sizes:
    points = tuple(_point(table(row)) for row in rows(data["points"]))
    seconds = tuple(real(value, 1e-12, _MOST_SECONDS) for value in rows(data["token_s"]))
    layers = {point.n_gpu_layers for point in points}
    if len(layers) != len(points) or not layers or min(layers) >= counts or len(seconds) < counts:
        raise ValueError(f"{len(seconds)} seconds and layers {sorted(layers)} for {counts} counts")
    return Sizes(
        whole(data["n_ctx"], 1, _MOST_TOKENS),
        whole(data["slots"], 1, _MOST_TOKENS),
        points,
        seconds,
    )


def _point(row: Mapping[str, Any]) -> PlanPoint:
    if row["source"] not in get_args(Source):
        raise ValueError("bytes of an unknown source")
    devices = {name: _footprint(table(part)) for name, part in table(row["devices"]).items()}
    return PlanPoint(
        whole(row["n_gpu_layers"], most=_MOST_LAYERS), devices, _args(row["args"]), row["source"]
    )


def _footprint(data: Mapping[str, Any]) -> Footprint:
    return Footprint(**{name: whole(n_bytes) for name, n_bytes in data.items()})


def _args(value: object) -> EngineArgs:
    data = table(value)
    known = {f.name: _arg(f.name, data[f.name]) for f in fields(EngineArgs) if f.name in data}
    return EngineArgs(**{**data, **known})


def _arg(name: str, value: object) -> object:
    usual = getattr(_ANY_ARGS, name)
    if isinstance(usual, tuple):
        return tuple(whole(x) if name == "tensor_split" else text(x) for x in rows(value))
    if name in _MAYBE_TEXT and value is None:
        return None
    if isinstance(usual, bool):
        if type(value) is not bool:
            raise ValueError(f"{name} is neither true nor false")
        return value
    return whole(value, 0, _MOST_TOKENS) if isinstance(usual, int) else text(value)


def entry_key(path: Path, args: EngineArgs, device: str, left_out: Collection[str] = ()) -> str:
    """The key of a model's entry, from its file, its arguments and the device.

    `left_out` are the configuration's keys that follow the model's file.

    Contexts, slots and layers are not part of it, because an entry holds all that may be chosen.
    """
    asked = named(replace(args, n_ctx=1, slots=1, n_gpu_layers=0, devices=()))
    text = json.dumps([str(path), asked, device, sorted(left_out)], sort_keys=True)
    # Half surrogates, of a file name that is not UTF-8, are no part of a key.
    stem = path.stem.encode("utf-8", "replace").decode()
    return f"{stem}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def variant_of(entry: Entry, sizes: Sizes) -> Variant:
    """The planner's table of an entry. Measured points may be chosen; the others are interpolated."""
    here = {point.n_gpu_layers: point for point in sizes.points}
    on_host = entry.device == HOST
    counts = np.arange(1 if on_host else entry.n_layers + 2)
    known = np.array(sorted(layers for layers in here if layers < len(counts)))
    host = np.array([_on(here[k], HOST) for k in known])
    device = np.array([0 if on_host else _on(here[k], entry.device) for k in known])
    seconds = np.array(sizes.token_s)[: len(counts)]
    return Variant(
        sizes.n_ctx,
        sizes.slots,
        np.interp(counts, known, host).astype(np.int64),
        np.interp(counts, known, device).astype(np.int64),
        {} if on_host else {entry.device: seconds},
        float(seconds[0]),
        np.isin(counts, known),
    )


def _on(point: PlanPoint, device: str) -> int:
    return point.devices.get(device, Footprint()).total_bytes
