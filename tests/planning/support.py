"""Made models and machines for tests of the planner."""

from collections.abc import Mapping

import numpy as np

from budget.placement.tables import ModelChoices, Variant

GIB = 1 << 30


def variant(
    gib: float,
    *,
    layers: int = 32,
    cpu_token_s: float | None = None,
    speeds: Mapping[str, float] | None = None,
    n_ctx: int = 4096,
    slots: int = 1,
    kv_gib: float = 0.0,
) -> Variant:
    """A model of equal layers; `speeds` are the devices' bandwidths as multiples of the CPU's."""
    cpu = gib / 20 if cpu_token_s is None else cpu_token_s
    steps = np.arange(layers + 2)
    share = steps / (layers + 1)
    total = int((gib + kv_gib) * GIB)
    device = (share * total).astype(np.int64)
    token_s = {
        name: cpu * (1 - share) + cpu * share / factor
        for name, factor in (speeds or {"cuda:0": 10.0}).items()
    }
    return Variant(n_ctx, slots, total - device, device, token_s, cpu)


def candidate(name: str, gib: float, **fields: object) -> ModelChoices:
    """A model of `gib` with one variant."""
    return ModelChoices(name, (variant(gib),), **fields)  # type: ignore[arg-type]
