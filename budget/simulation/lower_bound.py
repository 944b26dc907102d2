"""A lower bound on load seconds when the exact optimum is out of reach: a Lagrangian relaxation.

Between two uses of a model the model either stays, which saves its next load and takes its bytes all
that time, or goes. Choosing the stays that save most under the budget at every moment is an interval
packing problem. With a price for a byte at each moment in the place of the budget, each stay decides
for itself, and whatever the prices are the result bounds the true saving from above. Prices are
improved by subgradient steps. All devices are pooled into one, which can only lower the bound.

Source: Held, Wolfe and Crowder, "Validation of subgradient optimization", 1974.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

ROUNDS = 120
PATIENCE = 6


def lower_bound(
    uses: Sequence[int], sizes: Sequence[int], costs: Sequence[float], budget: int
) -> float:
    """Load seconds that no schedule can go below, starting with nothing resident.

    Args:
        uses: model numbers in order; each must fit alone.
        sizes: bytes by model number.
        costs: load seconds by model number.
        budget: bytes of all devices together.
    """
    sequence = np.array([use for use, _ in groupby(uses)], dtype=np.int64)
    if not sequence.size:
        return 0.0
    size, cost = np.array(sizes, dtype=np.float64), np.array(costs, dtype=np.float64)
    begin, end = _stays(sequence)
    stay_bytes, stay_saves = size[sequence[begin]], cost[sequence[begin]]
    all_loads = float(cost[sequence].sum())
    spare = budget - size[sequence]
    prices = np.full(sequence.size, float(np.median(cost / size)) / len(sizes))
    best, pace, idle = float(cost[np.unique(sequence)].sum()), 1.0, 0
    for _ in range(ROUNDS):
        rent = np.concatenate([[0.0], np.cumsum(prices)])
        # A stay takes its bytes during the uses of others between its own two uses.
        gain = stay_saves - stay_bytes * (rent[end] - rent[begin + 1])
        stays = gain > 0.0
        bound = all_loads - float(gain[stays].sum()) - float((prices * spare).sum())
        if bound > best:
            best, idle = bound, 0
        else:
            idle += 1
        if idle == PATIENCE:
            pace, idle = pace / 2.0, 0
        over = _taken(sequence.size, begin[stays], end[stays], stay_bytes[stays]) - spare
        prices = _moved(prices, over, pace * max(0.02 * all_loads, all_loads - bound))
    return best


def _moved(
    prices: NDArray[np.float64], over: NDArray[np.float64], gap: float
) -> NDArray[np.float64]:
    """Prices after one subgradient step; `over` is bytes wanted beyond the budget at each use."""
    over = np.where((prices > 0.0) | (over > 0.0), over, 0.0)
    norm = float((over * over).sum())
    if norm == 0.0:
        return prices
    return np.maximum(0.0, prices + over * (gap / norm))


def _stays(sequence: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of every use that has a next one of the same model, and of that next one."""
    order = np.argsort(sequence, kind="stable")
    same = sequence[order[:-1]] == sequence[order[1:]]
    return order[:-1][same], order[1:][same]


def _taken(
    length: int,
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    n_bytes: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Bytes taken by stays at each use between their own two."""
    change = np.bincount(begin + 1, n_bytes, length + 2) - np.bincount(end, n_bytes, length + 2)
    taken: NDArray[np.float64] = np.cumsum(change)[:length]
    return taken
