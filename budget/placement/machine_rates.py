"""What was measured of a machine: rates at which decode reads, what loads and starts cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from budget.errors import ConfigError
from budget.memory.shape import GGML_TYPES

Storage = Literal["cold", "staged"]
Origin = Literal["measured", "assumed"]

DECODE_SHARE: Final = 0.7
"""The share of a data sheet's bandwidth that decode is assumed to see where nothing was measured."""


@dataclass(frozen=True, slots=True)
class SideFigures:
    """How fast one device decodes: seconds of a token = `token_s` + layers x `layer_s` + bytes / rate.

    `crossing_s` is paid once a token where the host has layers as well. `bytes_per_s` is by ggml
    type: a quantized type is often bound by arithmetic, not by memory.
    `token_s` is paid once a token by a device that has layers (a graph's start, a round trip),
    `layer_s` for each of its layers (synchronisation, small operations).
    """

    bytes_per_s: Mapping[str, float]
    token_s: float = 0.0
    layer_s: float = 0.0
    crossing_s: float = 0.0
    origin: Origin = "measured"

    def __post_init__(self) -> None:
        bad = {t: r for t, r in self.bytes_per_s.items() if not 0.0 < r < float("inf")}
        if not self.bytes_per_s or bad or min(self.token_s, self.layer_s, self.crossing_s) < 0:
            raise ConfigError(
                f"these figures cannot be: rates {dict(self.bytes_per_s)}, {self.token_s:g} s a "
                f"token, {self.layer_s:g} s a layer.",
                hint="Rates are above 0 bytes/s; measure again with `keepwarm build`.",
            )

    def rate(self, ggml_type: str) -> float:
        """Bytes per second of a type; of the measured type nearest in bits where it was not."""
        found = self.bytes_per_s.get(ggml_type)
        if found is not None:
            return found
        bits = _bits(ggml_type)
        nearest = min(self.bytes_per_s, key=lambda known: (abs(_bits(known) - bits), known))
        return self.bytes_per_s[nearest]


def assumed_side(bandwidth_bytes_per_s: float) -> SideFigures:
    """The figures of a device known by its data sheet only."""
    return SideFigures({"F16": bandwidth_bytes_per_s * DECODE_SHARE}, origin="assumed")


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """What a load costs: a start, and bytes over the rate of the load mode and the storage.

    `cold_bytes_per_s` and `staged_bytes_per_s` are by llama.cpp's load mode (`mmap`, `none`, `dio`).
    """

    start_s: float
    cold_bytes_per_s: Mapping[str, float]
    staged_bytes_per_s: Mapping[str, float]
    origin: Origin = "measured"

    def best_mode(self, storage: Storage) -> str:
        """The fastest load mode for a file in that storage."""
        rates = self._rates(storage)
        return max(sorted(rates), key=lambda mode: rates[mode])

    def seconds(self, n_bytes: int, storage: Storage, mode: str | None = None) -> float:
        """The predicted seconds of a load; in the best mode where none is named."""
        rates = self._rates(storage)
        rate = rates.get(mode or "") or rates[self.best_mode(storage)]
        return self.start_s + n_bytes / rate

    def _rates(self, storage: Storage) -> Mapping[str, float]:
        return self.cold_bytes_per_s if storage == "cold" else self.staged_bytes_per_s


@dataclass(frozen=True, slots=True)
class MachineFigures:
    """Everything measured once per machine: `sides` by device name, the host among them.

    `context_bytes` is what an engine's context takes on each device beyond its buffers.
    """

    sides: Mapping[str, SideFigures]
    load: LoadFigures
    context_bytes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable data; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MachineFigures:
        """What `to_json` described.

        Raises:
            KeyError, TypeError, ValueError, ConfigError: the data is something else.
        """
        return cls(
            {str(name): SideFigures(**side) for name, side in data["sides"].items()},
            LoadFigures(**data["load"]),
            {str(name): int(amount) for name, amount in data["context_bytes"].items()},
        )


def _bits(ggml_type: str) -> float:
    elements, n_bytes = GGML_TYPES.get(ggml_type, (1, 2))
    return n_bytes * 8 / elements
