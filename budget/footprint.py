"""Footprints and placements: the bytes a model needs, by device and part.

A footprint is what a model would take; a placement is a footprint with its decisions made.
Bytes are ints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Source = Literal["closed-form", "bound", "dry-run", "engine", "declared", "files", "guess"]
"""Where bytes are from. `bound` is the closed form of a model whose graph is not known: its compute buffers
are at most as large. `declared` are those that a configuration gives; `files` (the sizes of what is loaded)
and `guess` hold until an engine was measured."""

GUESSED: frozenset[Source] = frozenset({"files", "guess"})

HOST = "host"
"""The name of the device that is the machine's RAM."""

MOST_TIMES = 4
MOST_EXTRA_BYTES = 2 << 30
"""The plausible bytes of an engine: so many times its estimate, and so much more. Above that it leaks."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one model takes on one device, in bytes by part."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    overhead_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of the parts."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.overhead_bytes

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(
            self.weights_bytes + other.weights_bytes,
            self.kv_bytes + other.kv_bytes,
            self.compute_bytes + other.compute_bytes,
            self.overhead_bytes + other.overhead_bytes,
        )


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """The arguments of an engine that change its bytes or its answers; what a footprint is keyed by.

    `n_ctx` counts the tokens of all slots together, as llama.cpp's `n_ctx` does.
    `devices` are those that layers go to, in order; over several of them `tensor_split` says how many
    layers (the output counts as one) each gets (`budget.memory.split`).
    `rpc[n]` is the server behind the device `RPCn`, empty for one that the engine does not use.
    `binding`: a worker over llama-cpp-python runs it, and not llama-server.
    `extra` holds further llama-server arguments, already in command-line form.
    """

    n_ctx: int
    slots: int = 1
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    flash_attention: Literal["on", "off", "auto"] = "auto"
    n_batch: int = 2048
    n_ubatch: int = 512
    n_gpu_layers: int = 0
    kv_unified: bool = False
    swa_full: bool = False
    use_mmap: bool = False
    repack: bool = True
    embeddings: bool = False
    mmproj: str | None = None
    draft_model: str | None = None
    lora: tuple[str, ...] = ()
    rpc: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    tensor_split: tuple[int, ...] = ()
    binding: bool = False
    extra: tuple[str, ...] = ()

    @property
    def context_per_slot(self) -> int:
        """Tokens that one request can use."""
        return self.n_ctx // self.slots

    @property
    def layer_devices(self) -> tuple[str, ...]:
        """The devices that layers go to, without the host."""
        return tuple(name for name in self.devices if name != HOST)


@dataclass(frozen=True, slots=True)
class Placement:
    """A footprint with its decisions made: what is booked, and exactly how the engine starts.

    Of several placements of one model those of a lower `tier` are preferred; those of one tier are
    equally good (whole on one device, or whole on another).
    """

    args: EngineArgs
    footprints: Mapping[str, Footprint]
    source: Source
    n_layers: int = 0
    reason: str = ""
    tier: int = 0
    bookings: tuple[tuple[str, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        booked = tuple((d, f.total_bytes) for d, f in sorted(self.footprints.items()))
        object.__setattr__(self, "bookings", booked)

    @property
    def main_device(self) -> str:
        """The device that holds most of it."""
        return max(self.bookings, key=lambda row: row[1])[0] if self.bookings else HOST

    @property
    def total_bytes(self) -> int:
        """Bytes over all devices."""
        return sum(amount for _, amount in self.bookings)
