"""The keeper's facts of one engine: its file, its placements, and its form for the core."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from backends.engine_process.process_engine import usable_cores
from backends.kinds import Backend
from budget.books.engines import EngineSpec, PlacementOption
from budget.errors import RoleViolation
from budget.footprint import HOST, Placement
from shim.config import ModelEntry as ConfigEntry
from shim.config.role_checks import too_coarse
from shim.placement.budgeted_devices import bookings_of
from shim.placement.plan_entry import Stamp
from shim.placement.requested import stamp_of

FIXED_LOAD_S = 0.2
LOAD_BYTES_PER_S = 1.0e9
"""First guesses of a load's cost, used until a load was measured."""


class ModelFile(Protocol):
    """Facts of a model's file, from its header or from the placement plan."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or all shards."""

    @property
    def identity(self) -> str:
        """A key for caches. It changes when a file is replaced or touched."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""

    @property
    def quantization(self) -> str:
        """The name of the main tensor type, as Q4_K_M."""

    @property
    def min_bits_per_weight(self) -> float | None:
        """Bits per weight of the most coarsely quantized matrix; None where no tensors are read."""


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
    threads: int | None
    warm_prompt: str | None
    identity: str = ""
    carries_kv: bool = False
    entry: ConfigEntry | None = None
    """The configured model, or one of those that share the engine; its keys make the engine."""

    @property
    def backend(self) -> Backend:
        """The engine's kind."""
        return self.entry.backend if self.entry is not None else "llama.cpp"

    @property
    def label(self) -> str:
        """The engine's name in messages: its models' names."""
        return "+".join(self.names)

    def spec(self) -> EngineSpec:
        """The engine in the core's form: its placements by tier."""
        size = sum(entry[1] for entry in self.stamp)
        seconds = FIXED_LOAD_S + size / LOAD_BYTES_PER_S
        options = tuple(
            PlacementOption(
                bookings_of(placement),
                seconds,
                placement.tier,
                self._threads_of(placement),
                learned=placement.source == "engine",
            )
            for placement in self.placements
        )
        return EngineSpec(self.engine_id, options, self.placements[0].args.slots)

    def _threads_of(self, placement: Placement) -> int:
        """How many cores a placement computes on; 0 where other devices have all layers."""
        if placement.main_device != HOST and placement.args.n_gpu_layers >= placement.n_layers:
            return 0
        return self.threads or usable_cores()

    def changed_files(self) -> list[str]:
        """The paths of its files that changed since its bytes were computed."""
        now = stamp_of([row[0] for row in self.stamp])
        return [row[0] for row, found in zip(self.stamp, now, strict=True) if row != found]

    def corrected(self, option_index: int, placement: Placement) -> CatalogEngine:
        """A copy of the engine with another placement at one option."""
        placements = list(self.placements)
        placements[option_index] = placement
        return replace(self, placements=tuple(placements))


@dataclass(frozen=True, slots=True)
class Prepared:
    """One local model, read and placed. `far`: its files lie on another machine.

    `forgotten` is the stamp of the file that changes when what was learned of it is forgotten.
    """

    name: str
    entry: ConfigEntry
    header: ModelFile
    placements: tuple[Placement, ...]
    engine_id: str
    stamp: Stamp
    carries_kv: bool = False
    far: bool = False
    forgotten: Stamp = ()

    @property
    def unfit(self) -> RoleViolation | None:
        """Why it may not do its role's work, which holds for callers that do not override it by name."""
        return too_coarse(self.name, self.entry.role, self.header)

    def engine(self, names: tuple[str, ...]) -> CatalogEngine:
        """The engine that serves this model and all others in `names`."""
        return CatalogEngine(
            self.engine_id,
            self.header.files[0],
            self.placements,
            names,
            self.stamp,
            self.header.architecture,
            self.header.quantization,
            self.entry.threads,
            self.entry.warm_prompt,
            self.header.identity,
            self.carries_kv,
            self.entry,
        )
