"""A model's choices as arrays: bytes on both sides and seconds of a token, by n_gpu_layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from budget.errors import ConfigError

Bytes = NDArray[np.int64]
Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Variant:
    """A model with one context and number of slots.

    `host_bytes` and `device_bytes` are by n_gpu_layers, 0 to n_layers + 1; `token_s` holds the
    seconds of one token by n_gpu_layers for each device that layers may go to, and its entry 0 is
    the CPU alone. `allowed` says which numbers of layers may be chosen (all by default).
    `each_device_bytes` of `device_bytes` stand on every device of a spread again (compute buffer, context).
    """

    n_ctx: int
    slots: int
    host_bytes: Bytes
    device_bytes: Bytes
    token_s: Mapping[str, Seconds]
    cpu_token_s: float
    allowed: NDArray[np.bool_] | None = None
    each_device_bytes: int = 0

    def __post_init__(self) -> None:
        lengths = {len(self.host_bytes), len(self.device_bytes)}
        lengths |= {len(row) for row in self.token_s.values()}
        if len(lengths) != 1 or min(lengths) < 1:
            raise ConfigError(
                f"a table of {sorted(lengths)} numbers of layers does not add up.",
                hint="Every row has an entry for each number of layers, 0 among them.",
            )

    @property
    def whole(self) -> int:
        """The n_gpu_layers that puts everything on a device."""
        return len(self.host_bytes) - 1

    def may(self, n_gpu_layers: int) -> bool:
        """Whether that number of layers may be chosen."""
        return self.allowed is None or bool(self.allowed[n_gpu_layers])


@dataclass(frozen=True, slots=True)
class ModelChoices:
    """A model to place.

    Args:
        name: what callers call it.
        variants: by preference; the first has the preferred context and slots, later ones less.
        rate: its requests, relative to the other models'.
        weight: what a second of its requests counts, by its role.
        passes: times that a request reads the weights (its output tokens, and one for the prompt).
        load_s: seconds to make it resident when it is not.
        pinned: eviction never touches it.
        n_gpu_layers: given by the configuration, or None.
    """

    name: str
    variants: tuple[Variant, ...]
    rate: float = 1.0
    weight: float = 1.0
    passes: float = 256.0
    load_s: float = 1.0
    pinned: bool = False
    n_gpu_layers: int | None = None
    role: str | None = field(default=None, compare=False)

    @property
    def alone_s(self) -> float:
        """Seconds of a request with the best device to itself, its load included.

        What a second counts is relative to it: ten more seconds are worse for a request of one
        second than for one of a minute.
        """
        variant = self.variants[0]
        best = min((float(s[-1]) for s in variant.token_s.values()), default=variant.cpu_token_s)
        return self.passes * min(best, variant.cpu_token_s) + self.load_s


@dataclass(frozen=True, slots=True)
class RoleWork:
    """What a role's requests are taken to be until they were seen."""

    rate: float
    weight: float
    passes: float


ROLE_WORK: Mapping[str | None, RoleWork] = {
    None: RoleWork(1.0, 1.0, 257.0),
    "producer": RoleWork(1.0, 1.0, 257.0),
    "evaluator": RoleWork(1.0, 1.5, 65.0),
    "planner": RoleWork(0.5, 1.0, 129.0),
    "embedder": RoleWork(2.0, 1.0, 1.0),
}
"""By role: relative requests, weight of a second (others wait for an evaluator), passes a request."""
