"""The choices of one model: whole, spread, split or on the CPU, as bytes by pool and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from budget.footprint import HOST
from budget.placement.tables import ModelChoices, Variant

Kind = Literal["whole", "spread", "split", "cpu"]

MIN_SPLIT_GAIN: Final = 1.2
"""How many times as fast as the CPU alone a split must be: less is not worth a device's bytes."""

_LADDER: Final = 2


@dataclass(frozen=True, slots=True)
class ModelOption:
    """One choice. `pool_bytes` are in the order of the pools, `token_s` the seconds of one token."""

    kind: Kind
    devices: tuple[str, ...]
    n_gpu_layers: int
    pool_bytes: tuple[int, ...]
    token_s: float


@dataclass(frozen=True, slots=True)
class BytePools:
    """The devices' limits in bytes: the host first, then those that layers may go to."""

    names: tuple[str, ...]
    limits: tuple[int, ...]

    @classmethod
    def of(cls, limits: Mapping[str, int]) -> BytePools:
        """The pools of limits by device; a host that is not named has no limit."""
        devices = [name for name in limits if name != HOST]
        names = (HOST, *devices)
        return cls(names, tuple(limits.get(name, 1 << 62) for name in names))

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that layers may go to."""
        return self.names[1:]

    def hold(self, pool_bytes: Sequence[int]) -> bool:
        """Whether an option fits when nothing else is there."""
        return all(n <= limit for n, limit in zip(pool_bytes, self.limits, strict=True))


def options_of(
    model: ModelChoices, variant: Variant, pools: BytePools, *, min_gain: float = MIN_SPLIT_GAIN
) -> list[ModelOption]:
    """What may be chosen for a model, best first: whole on one device, spread, split, the CPU.

    Choices that fit no machine of these limits are left out, and splits that gain less than
    `min_gain` over the CPU alone. A given number of layers is honoured exactly.
    """
    fixed = model.n_gpu_layers
    if fixed is not None:
        wanted = [fixed] if fixed <= variant.whole else []
        found = [option_at(variant, pools, d, k) for k in wanted for d in pools.devices[:1] if k]
        found += [] if fixed else [cpu_option(variant, pools)]
        return [option for option in found if pools.hold(option.pool_bytes)]
    found = [option_at(variant, pools, d, variant.whole) for d in pools.devices]
    found += spread_options(variant, pools)
    for device in pools.devices:
        found += _splits(variant, pools, device, min_gain)
    found.append(cpu_option(variant, pools))
    return [o for o in found if variant.may(o.n_gpu_layers) and pools.hold(o.pool_bytes)]


def option_at(variant: Variant, pools: BytePools, device: str, layers: int) -> ModelOption:
    """That many layers on one device."""
    kind: Kind = "whole" if layers == variant.whole else "split"
    amounts = [0] * len(pools.names)
    amounts[0] = int(variant.host_bytes[layers])
    amounts[pools.names.index(device)] = int(variant.device_bytes[layers])
    return ModelOption(
        kind, (device,), layers, tuple(amounts), float(variant.token_s[device][layers])
    )


def cpu_option(variant: Variant, pools: BytePools) -> ModelOption:
    """Everything on the host."""
    amounts = (int(variant.host_bytes[0]), *(0 for _ in pools.devices))
    return ModelOption("cpu", (HOST,), 0, amounts, variant.cpu_token_s)


def spread_options(variant: Variant, pools: BytePools) -> list[ModelOption]:
    """Everything on all devices together, by their limits; none with fewer than two devices.

    Layers follow one another, so that a token takes the mean of the devices' times.
    """
    return [spread_at(variant, pools, variant.whole)] if len(pools.devices) > 1 else []


def spread_at(variant: Variant, pools: BytePools, layers: int) -> ModelOption:
    """So many layers on all devices together, by their limits; the rest is on the host."""
    kind: Kind = "spread" if layers == variant.whole else "split"
    limits = np.array(pools.limits[1:], dtype=float)
    shares = limits / limits.sum()
    each = variant.each_device_bytes
    needed = max(0, int(variant.device_bytes[layers]) - each)
    # A layer goes to one device as a whole, so that each may get one more than its share.
    layer = needed // max(layers, 1)
    amounts = (int(variant.host_bytes[layers]), *(int(needed * s) + layer + each for s in shares))
    seconds = sum(
        float(variant.token_s[d][layers]) * s for d, s in zip(pools.devices, shares, strict=True)
    )
    return ModelOption(kind, pools.devices, layers, amounts, seconds)


def _splits(variant: Variant, pools: BytePools, device: str, min_gain: float) -> list[ModelOption]:
    layers = worthwhile_layers(variant, pools, device, min_gain)
    if len(layers) > _LADDER:
        steps = np.linspace(len(layers) - 1, 0, _LADDER).round().astype(int)
        layers = [layers[i] for i in steps]
    return [option_at(variant, pools, device, k) for k in sorted(layers, reverse=True)]


def worthwhile_layers(
    variant: Variant, pools: BytePools, device: str, min_gain: float = MIN_SPLIT_GAIN
) -> list[int]:
    """The numbers of layers that fit a device alone and gain enough over the CPU; no whole ones."""
    limit = pools.limits[pools.names.index(device)]
    gains = variant.cpu_token_s / variant.token_s[device]
    good = (variant.device_bytes <= limit) & (variant.host_bytes <= pools.limits[0])
    good &= gains >= min_gain
    if variant.allowed is not None:
        good &= variant.allowed
    return [int(k) for k in np.flatnonzero(good) if 0 < k < variant.whole]
