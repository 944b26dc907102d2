"""Expected seconds of a request under many assignments at once.

A device is a pool that residents share. What fits together stays; what does not is loaded again
and again: the chance that a request finds its model resident follows from Che's approximation of
LRU (H. Che, Y. Tung, Z. Wang: Hierarchical web caching systems, 2002), and loads queue for one
another as in M/G/1 (Pollaczek and Khinchine).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_STEPS: Final = 6
_MOST_BUSY: Final = 0.95


@dataclass(frozen=True, slots=True)
class Demand:
    """What models ask for; arrays have one entry per model.

    `rate` in requests per second, `weight` of a second of theirs, `passes` over the weights of a
    request, `load_s` seconds of a load, `pinned` whether eviction may not touch the model.
    """

    rate: Floats
    weight: Floats
    passes: Floats
    load_s: Floats
    pinned: NDArray[np.bool_]


def expected_seconds(load: Demand, n_bytes: Floats, token_s: Floats, limits: Floats) -> Floats:
    """Seconds of a request, averaged over the models by rate and weight; one figure per row.

    Args:
        load: the models.
        n_bytes: rows x models x pools, bytes that each model takes.
        token_s: rows x models, seconds of one pass.
        limits: bytes of each pool.

    Infinite where a pinned set, or a model beside it, does not fit.
    """
    miss = np.zeros(token_s.shape)
    possible = np.ones(len(token_s), dtype=bool)
    for pool, limit in enumerate(limits):
        missed, fits = _pool(load, n_bytes[:, :, pool], float(limit))
        np.maximum(miss, missed, out=miss)
        possible &= fits
    waiting = _queue(load, miss)
    seconds = miss * (load.load_s + waiting[:, None]) + load.passes * token_s
    share = load.rate * load.weight
    found: Floats = seconds @ (share / share.sum())
    found[~possible] = np.inf
    return found


def _pool(load: Demand, sizes: Floats, limit: float) -> tuple[Floats, NDArray[np.bool_]]:
    """The chance of a miss by row and model, and which rows are possible at all."""
    moving = sizes * ~load.pinned
    asked = moving.sum(axis=1)
    room = limit - sizes @ load.pinned.astype(float)
    fits: NDArray[np.bool_] = (room >= 0) & (moving.max(axis=1, initial=0.0) <= room)
    miss = np.zeros(sizes.shape)
    tight = fits & (asked > room)
    if tight.any():
        some = moving[tight]
        rows = np.exp(-load.rate * _che_time(load.rate, some, room[tight])[:, None])
        miss[tight] = np.where(some > 0, rows, 0.0)
    return miss, fits


def _che_time(rate: Floats, sizes: Floats, room: Floats) -> Floats:
    """The time T with sum of sizes x (1 - exp(-rate T)) = room, by Newton's method from below.

    The sum is concave in T, so that every step stays below the solution.
    """
    moments = np.stack([np.ones_like(rate), rate], axis=1)
    total, slope = (sizes @ moments).T
    time: Floats = room / slope
    for _ in range(_STEPS):
        left = sizes * np.exp(time[:, None] * -rate)
        outside, slope = (left @ moments).T
        time += (room - total + outside) / np.maximum(slope, 1e-300)
    return time


def _queue(load: Demand, miss: Floats) -> Floats:
    """Seconds that a load waits for others; where loads take all the time, as if they took 95%."""
    loads = miss * load.rate
    busy = np.minimum(loads @ load.load_s, _MOST_BUSY)
    waiting: Floats = (loads @ load.load_s**2) / (2.0 * (1.0 - busy))
    return waiting
