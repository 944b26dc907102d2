"""A model's layers as arrays, made once when its header is read, so that placements cost no loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LayerTable:
    """One entry per layer: heads, and elements of all heads' queries, keys and values together."""

    heads: Counts
    has_cache: Flags
    width_q: Counts
    width_k: Counts
    width_v: Counts
    ff: Counts
    windowed: Flags
    recurrent: Flags


def _flags(values: Sequence[bool], n_layers: int) -> Flags:
    return np.array(values or (False,) * n_layers, dtype=bool)


def layer_table(
    n_layers: int,
    heads: Sequence[int],
    kv_heads: Sequence[int],
    dims: tuple[Sequence[int], Sequence[int]],
    feed_forward: Sequence[int],
    flags: tuple[Sequence[bool], Sequence[bool]],
) -> LayerTable:
    """The table of a model: `dims` of a key's and a value's head, `feed_forward` rows where it is dense,
    `flags` for a sliding window and for recurrent state.
    """  # noqa: D205
    numbers = np.array([heads, kv_heads, *dims, feed_forward], dtype=np.int64)
    n_heads, n_kv, dim_k, dim_v, ff = numbers.reshape(5, n_layers)
    windowed, recurrent = (_flags(values, n_layers) for values in flags)
    return LayerTable(
        n_heads,
        n_kv > 0,
        n_heads * dim_k,
        n_kv * dim_k,
        n_kv * dim_v,
        ff,
        windowed,
        recurrent,
    )
