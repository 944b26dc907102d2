"""What rotates a quantized cache. Source: `src/llama-kv-cache.cpp`."""

from __future__ import annotations

from typing import Final

from budget.footprint import EngineArgs
from budget.memory.shape import GGML_TYPES, ModelShape

_ROTATED: Final = 64


def rotations(shape: ModelShape, args: EngineArgs, *, windowed: bool = False) -> tuple[int, int]:
    """Rows of the matrices that rotate the keys and the values of a quantized cache; 0 for none.

    Heads are rotated when they are a multiple of 64: keys by the largest power of two in them,
    values by 64 (`attn_rot_k`, `build_input_k_rot`). With windows there are
    two caches, each with the heads of its own layers.
    """
    if not shape.causal or not shape.n_layers:
        return 0, 0
    layers = range(shape.n_layers)
    cached = [i for i in layers if shape.kv_heads[i] and shape.layers.windowed[i] == windowed]
    k, v = (
        each[cached[0]] if len({each[i] for i in cached}) == 1 else 0
        for each in (shape.head_dim_k, shape.head_dim_v)
    )
    rotates_k = is_quantized(args.kv_type_k) and k and shape.head_dim_k[0] % _ROTATED == 0
    rotates_v = is_quantized(args.kv_type_v) and v and shape.head_dim_v[0] % _ROTATED == 0
    return max(k & -k, _ROTATED) if rotates_k else 0, _ROTATED if rotates_v else 0


def is_quantized(kind: str) -> bool:
    """Whether a cache's type has blocks."""
    return GGML_TYPES[kind.upper()][0] > 1
