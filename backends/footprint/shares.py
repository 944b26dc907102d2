"""Divides layers over several devices, so that all are filled alike and none beyond its room.

The bytes of single layers come from the closed form, for any architecture. The bytes of a device beside
its layers are measured. A division is checked by a measurement before it is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from budget.footprint import EngineArgs, Placement
from budget.memory.kv_cache import kv_by_layer
from budget.memory.recurrent import recurrent_by_layer
from budget.memory.shape import ModelShape
from budget.memory.split import device_of_layers
from budget.memory.weights import weights_by_layers

Sizes = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shares:
    """The bytes of each layer on a device (weights and state); the last one is the output."""

    by_layer: Sizes
    n_devices: int

    @classmethod
    def of(cls, shape: ModelShape, args: EngineArgs, devices: Sequence[str]) -> Shares:
        """The shares of one model with an engine's arguments. All devices are assumed to be of one kind."""
        moved = weights_by_layers(shape, repack=args.repack, device=devices[0]).device
        found = np.diff(moved)[::-1].astype(np.float64)
        found[:-1] += kv_by_layer(shape, args) + recurrent_by_layer(shape, args)
        return cls(found, len(devices))

    def sizes(self, layers: int) -> Sizes:
        """The bytes of the layers that are moved to devices, in order."""
        return self.by_layer[len(self.by_layer) - layers :]

    def even(self, layers: int) -> tuple[int, ...]:
        """Equally many layers on each device; the first devices get the remainder."""
        each, rest = divmod(layers, self.n_devices)
        return tuple(each + (number < rest) for number in range(self.n_devices))

    def layers_of(self, placement: Placement, device: str) -> float:
        """The bytes of the layers that a placement has on a device."""
        args = placement.args
        if device not in args.layer_devices:
            return 0.0
        number = args.layer_devices.index(device)
        places = device_of_layers(args.tensor_split, args.n_gpu_layers, placement.n_layers)
        return float(self.by_layer[places == number].sum())


def balanced(sizes: Sizes, room: Sequence[float]) -> tuple[int, ...] | None:
    """Layers by device that minimise how full the fullest device is, by its room.

    Layers stay in order, and every device gets at least one. None when they do not fit.
    """
    share, counts = _divided(sizes, room)
    return counts if share <= 1.0 else None


def most_layers(shares: Shares, room: Sequence[float]) -> int:
    """The most layers, counted from the last, that devices with so much room hold together."""
    low, high = 0, len(shares.by_layer) - 1
    while low < high:
        middle = (low + high + 1) // 2
        fits = _divided(shares.sizes(middle), room)[0] <= 1.0
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _divided(sizes: Sizes, room: Sequence[float]) -> tuple[float, tuple[int, ...]]:
    """The best division, and how full its fullest device is.

    Dynamic programming, device by device: the best for the layers up to each end, over all begins.
    """
    count = len(sizes)
    if count < len(room) or min(room) <= 0:
        return np.inf, ()
    ahead = np.concatenate([[0.0], np.cumsum(sizes)])
    # Entry (begin, end) holds the bytes of the layers between; a device has at least one.
    between = ahead[None, :] - ahead[:, None]
    between[np.tril_indices(count + 1)] = np.inf
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    begins = []
    for amount in room:
        fullest = np.maximum(best[:, None], between / amount)
        begins.append(fullest.argmin(axis=0))
        best = fullest.min(axis=0)
    cuts = [count]
    for begin in reversed(begins):
        cuts.append(int(begin[cuts[-1]]))
    return float(best[-1]), tuple(end - begin for begin, end in pairwise(reversed(cuts)))
