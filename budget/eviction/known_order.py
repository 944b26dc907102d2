"""The exact program: the least load seconds for a sequence of uses, over all resident subsets.

Dynamic programming backwards in time. V_t(S) is the least cost of the uses from t on when the models
of S are resident before t. A use of a resident model costs nothing; any other costs its load and
leaves S' + m for some subset S' of S that fits beside it, so that

    V_t(S) = c_m + min over S' in S of V_{t+1}(S' + m)        (m not in S)
    V_t(S) = V_{t+1}(S)                                       (m in S)

The minimum over subsets takes one pass a model over the table (subset-minimum transform). Evicting
costs nothing and may be put off until room is needed, and loading early pays the same, so this is the
optimum of any schedule that serves one request at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
MAX_MODELS = 14
"""Tables have 2**n entries; above this they no longer fit a core's cache."""


def fits(sizes: Sequence[int], budget: int) -> NDArray[np.bool_]:
    """For every subset (bit i: model i), whether its bytes fit; shape (2**n,)."""
    total = np.zeros(1, dtype=np.int64)
    for size in sizes:
        total = np.concatenate([total, total + size])
    return total <= budget


def step(after: Values, use: int, cost: float, feasible: NDArray[np.bool_]) -> Values:
    """V_t from V_{t+1} for a use of model number `use`; shape (2**n,), inf where S does not fit."""
    n_models = after.size.bit_length() - 1
    split = after.reshape(-1, 2, 1 << use)
    least = split[:, 1, :].copy()
    flat = least.reshape(-1)
    for model in range(n_models - 1):
        halves = flat.reshape(-1, 2, 1 << model)
        np.minimum(halves[:, 1, :], halves[:, 0, :], out=halves[:, 1, :])
    before = np.empty_like(split)
    before[:, 1, :] = split[:, 1, :]
    before[:, 0, :] = least + cost
    values: Values = before.reshape(-1)
    values[~feasible] = np.inf
    return values


def backwards(
    uses: Sequence[int],
    sizes: Sequence[int],
    costs: Sequence[float],
    budget: int,
    final: Values | None = None,
) -> Iterator[Values]:
    """The tables V_t from the last use to the first, each of shape (2**n,).

    Args:
        uses: model numbers in order; each must fit alone.
        sizes: bytes by model number.
        costs: load seconds by model number.
        budget: bytes.
        final: the cost to go after the last use, by subset; 0 when None.
    """
    feasible = fits(sizes, budget)
    values = np.zeros(feasible.size) if final is None else final.copy()
    values[~feasible] = np.inf
    for use in reversed(uses):
        values = step(values, use, costs[use], feasible)
        yield values


def optimum(
    uses: Sequence[int], sizes: Sequence[int], costs: Sequence[float], budget: int
) -> float:
    """The least load seconds for a sequence of uses, starting with nothing resident."""
    # A use that repeats the one before it costs nothing under any policy.
    distinct = [use for use, _ in groupby(uses)]
    least = 0.0
    for values in backwards(distinct, sizes, costs, budget):
        least = float(values[0])
    return least
