"""The KV cache, layer by layer. Source: llama.cpp `src/llama-kv-cache.cpp`, `-iswa.cpp`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budget.estimate.arguments import effective, pad
from budget.estimate.shape import ModelShape, row_bytes
from budget.footprint import EngineArgs

_CELL_PAD = 256


def cells(shape: ModelShape, args: EngineArgs) -> NDArray[np.int64]:
    """Cells of one stream, per layer: the whole context, or what a sliding window needs.

    A window keeps pad(min(n_ctx, n_swa x (unified ? slots : 1) + n_ubatch), 256) cells
    (`llama_kv_cache_iswa`).
    """
    sizes = effective(args, causal=shape.causal)
    found = np.full(shape.n_layers, sizes.n_ctx_seq, dtype=np.int64)
    if shape.sliding_window and not args.swa_full:
        sequences = args.slots if args.kv_unified else 1
        needed = shape.sliding_window * sequences + sizes.n_ubatch
        window = pad(min(sizes.n_ctx_seq, needed), _CELL_PAD)
        found[np.array(shape.window_layers, dtype=bool)] = min(window, sizes.n_ctx_seq)
    return found


def kv_by_layer(shape: ModelShape, args: EngineArgs) -> NDArray[np.int64]:
    """Bytes of the KV cache of each layer: (a key row + a value row) x cells x streams.

    Multi-head latent attention keeps one compressed key row and no values. Layers that share
    another's cache, and layers without attention, have none. Without flash attention every value
    row has the width of the widest.
    """
    sizes = effective(args, causal=shape.causal)
    kind_k, kind_v = args.kv_type_k.upper(), args.kv_type_v.upper()
    widths_v = [n * d for n, d in zip(shape.kv_heads, shape.head_dim_v, strict=True)]
    if args.flash_attention == "off":
        widest = max(widths_v, default=0)
        widths_v = [widest if n else 0 for n in shape.kv_heads]
    rows = []
    for heads, dim_k, width_v in zip(shape.kv_heads, shape.head_dim_k, widths_v, strict=True):
        if shape.is_mla:
            rows.append(row_bytes(kind_k, shape.kv_lora_rank + shape.rope_dims) if heads else 0)
        else:
            rows.append(row_bytes(kind_k, heads * dim_k) + row_bytes(kind_v, width_v))
    found = np.array(rows, dtype=np.int64) * cells(shape, args) * sizes.n_streams
    if shape.n_layers_shared_kv:
        found[shape.n_layers - shape.n_layers_shared_kv :] = 0
    return found if shape.causal else np.zeros_like(found)
