"""One model's part of a plan: its file, its bytes by n_gpu_layers, what was measured of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from budget.footprint import HOST, EngineArgs, Footprint
from budget.planning.tables import Variant

Stamp = tuple[tuple[str, int, int], ...]
"""Path, size and modification time of every file that an engine reads."""

_TUPLES = ("lora", "rpc", "devices", "tensor_split", "extra")


@dataclass(frozen=True, slots=True)
class Point:
    """The footprint, by device, with one number of layers; and the layers' own arguments."""

    n_gpu_layers: int
    devices: Mapping[str, Footprint]
    args: EngineArgs
    source: Literal["closed-form", "dry-run"] = "dry-run"


@dataclass(frozen=True, slots=True)
class Sizes:
    """A context and a number of slots: the points that were measured with them.

    `token_s` are predicted seconds of a token by n_gpu_layers, 0 to n_layers + 1 (0 alone on a
    machine without another device).
    """

    n_ctx: int
    slots: int
    points: tuple[Point, ...]
    token_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the catalog needs to know of a model file: as a header has it."""

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
            KeyError, TypeError, ValueError: the data is something else.
        """
        facts = {**data["facts"], "files": tuple(Path(p) for p in data["facts"]["files"])}
        return cls(
            tuple((str(p), int(n), int(t)) for p, n, t in data["stamp"]),
            FileFacts(**facts),
            int(data["n_layers"]),
            str(data["device"]),
            tuple(_sizes(row) for row in data["variants"]),
            float(data["load_s"]),
            bool(data["carries_kv"]),
            {str(name): float(value) for name, value in data["measured"].items()},
        )


def _sizes(data: Mapping[str, Any]) -> Sizes:
    points = tuple(
        Point(
            int(row["n_gpu_layers"]),
            {str(d): Footprint(**part) for d, part in row["devices"].items()},
            _args(row["args"]),
            row["source"],
        )
        for row in data["points"]
    )
    seconds = tuple(float(value) for value in data["token_s"])
    if not points or not seconds:
        raise ValueError("an entry without a point")
    return Sizes(int(data["n_ctx"]), int(data["slots"]), points, seconds)


def _args(data: Mapping[str, Any]) -> EngineArgs:
    return EngineArgs(**{**data, **{name: tuple(data[name]) for name in _TUPLES}})


def entry_key(path: Path, args: EngineArgs, device: str) -> str:
    """The name of a model's entry: of its file, and of what an engine of it is asked for.

    Contexts, slots and layers are not in it: an entry holds those that may be chosen.
    """
    asked = asdict(replace(args, n_ctx=1, slots=1, n_gpu_layers=0, devices=()))
    text = json.dumps([str(path), asked, device], sort_keys=True)
    return f"{path.stem}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"


def variant_of(entry: Entry, sizes: Sizes) -> Variant:
    """The planner's table of an entry: measured points may be chosen, others lie between them."""
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


def _on(point: Point, device: str) -> int:
    return point.devices.get(device, Footprint()).total_bytes
