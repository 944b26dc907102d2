"""The KV cache, layer by layer. Source: llama.cpp `src/llama-kv-cache.cpp`, `-iswa.cpp`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budget.footprint import EngineArgs
from budget.memory.arguments import effective, pad
from budget.memory.shape import GGML_TYPES, ModelShape, row_bytes

_CELL_PAD = 256


def cell_counts(shape: ModelShape, args: EngineArgs) -> tuple[int, int]:
    """Cells of one stream: of the whole context, and of a layer with a sliding window.

    A window keeps pad(min(n_ctx, n_swa x (unified ? slots : 1) + n_ubatch), 256) cells
    (`llama_kv_cache_iswa`).
    """
    sizes = effective(args, causal=shape.causal)
    if not shape.sliding_window or args.swa_full:
        return sizes.n_ctx_seq, sizes.n_ctx_seq
    sequences = args.slots if args.kv_unified else 1
    needed = shape.sliding_window * sequences + sizes.n_ubatch
    window = pad(min(sizes.n_ctx_seq, needed), _CELL_PAD)
    return sizes.n_ctx_seq, min(window, sizes.n_ctx_seq)


def cells(shape: ModelShape, args: EngineArgs) -> NDArray[np.int64]:
    """Cells of one stream, per layer: see `cell_counts`."""
    everything, window = cell_counts(shape, args)
    return np.where(shape.layers.windowed, window, everything)


def kv_by_layer(shape: ModelShape, args: EngineArgs) -> NDArray[np.int64]:
    """Bytes of the KV cache of each layer: (a key row + a value row) x cells x streams.

    Multi-head latent attention keeps one compressed key row and no values. Layers that share another's
    cache, that only predict further tokens, or have no attention, have none. Without flash attention every
    value row has the width of the widest.
    """
    layers = shape.layers
    if not shape.causal:
        return np.zeros(shape.n_layers, dtype=np.int64)
    kind_k, kind_v = args.kv_type_k.upper(), args.kv_type_v.upper()
    if shape.is_mla:
        rows = layers.has_cache * row_bytes(kind_k, shape.kv_lora_rank + shape.rope_dims)
    else:
        width_v = layers.width_v
        if args.flash_attention == "off":
            width_v = layers.has_cache * width_v.max(initial=0)
        rows = _rows(kind_k, layers.width_k) + _rows(kind_v, width_v)
    found = rows * cells(shape, args) * effective(args).n_streams
    without = max(shape.n_layers_shared_kv, shape.n_layers_nextn)
    found[shape.n_layers - without :] = 0
    return found


def _rows(kind: str, widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`row_bytes` of many rows."""
    block_elements, block_bytes = GGML_TYPES[kind]
    return -(-widths // block_elements) * block_bytes
