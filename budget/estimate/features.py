"""The sizes that a compute buffer is made of, on both sides and for every n_gpu_layers at once.

Each is the bytes of one tensor of the graph for a full micro-batch; a compute buffer is the largest of
several weighted sums of them (`budget.estimate.compute`). Source of the tensors: llama.cpp
`src/llama-graph.cpp` and `src/models/*.cpp`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.estimate.arguments import Effective, effective, pad
from budget.estimate.kv import cells
from budget.estimate.shape import GGML_TYPES, ModelShape
from budget.footprint import EngineArgs

Matrix = NDArray[np.float64]
_FLOAT_BYTES: Final = 4

SHARED_FEATURES: Final = (
    "ids",
    "embd",
    "logits",
    "output_rows",
    "rotation",
    "all_mask",
    "all_mask_window",
    "all_v_ids",
    "states",
    "conv_states",
)
"""What does not depend on which layers are on a side. `ids` is one I32 per token of the micro-batch,
`embd` the activations, `all_mask` the masks of all layers (the host makes them for both sides)."""

LAYER_FEATURES: Final = (
    "q",
    "k",
    "v",
    "ff",
    "expert_ff",
    "expert_out",
    "router",
    "shared_ff",
    "mask",
    "mask_window",
    "scores",
    "scores_window",
    "v_ids",
    "latent",
    "q_mla",
    "v_mla",
    "inner",
    "conv",
    "ssm_heads",
)
"""What the widest layer of a side has, per micro-batch: 0 where no layer of that side has it."""

FEATURES: Final = SHARED_FEATURES + LAYER_FEATURES


def rotation_bytes(shape: ModelShape, args: EngineArgs) -> int:
    """Bytes of the matrices that rotate a quantized cache: 0 where nothing is rotated.

    Heads are rotated when they are a multiple of 64: keys by the largest power of two in them,
    values by 64 (`src/llama-kv-cache.cpp`, `attn_rot_k`, `build_input_k_rot`).
    """
    if not shape.causal:
        return 0
    found = 0
    head_k, head_v = max(shape.head_dim_k, default=0), max(shape.head_dim_v, default=0)
    if _is_quantized(args.kv_type_k) and head_k and head_k % 64 == 0:
        found += _FLOAT_BYTES * (head_k & -head_k) ** 2
    if _is_quantized(args.kv_type_v) and head_v and head_v % 64 == 0:
        found += _FLOAT_BYTES * 64**2
    return found


def _is_quantized(kind: str) -> bool:
    return GGML_TYPES[kind.upper()][0] > 1


def mode(shape: ModelShape, args: EngineArgs) -> str:
    """Which kernels the graph uses: `flash` or `scores` attention, `-rotated` with such a cache."""
    attention = "scores" if args.flash_attention == "off" else "flash"
    return f"{attention}-rotated" if rotation_bytes(shape, args) else attention


def feature_matrices(shape: ModelShape, args: EngineArgs) -> tuple[Matrix, Matrix]:
    """Bytes by n_gpu_layers (rows, 0 to n_layers + 1) and feature (columns), of host and device."""
    sizes = effective(args, causal=shape.causal)
    tokens = pad(sizes.n_tokens, args.slots)
    layers = _layer_matrix(shape, args, tokens)
    shared = _shared_row(shape, args, sizes, tokens, layers)
    n, width = layers.shape
    ahead, behind = np.zeros((2, n + 1, width))
    np.maximum.accumulate(layers, axis=0, out=ahead[1:])
    np.maximum.accumulate(layers[::-1], axis=0, out=behind[1:])
    # Row k of the host has n + 1 - k layers (all of them with 0 or 1 on the device).
    on_host = np.concatenate([ahead[-1:], ahead[::-1]])
    on_device = np.concatenate([behind[:1], behind])
    repeated = np.broadcast_to(shared, (n + 2, len(shared)))
    return np.hstack([repeated, on_host]), np.hstack([repeated, on_device])


def _layer_matrix(shape: ModelShape, args: EngineArgs, tokens: int) -> Matrix:
    n = shape.n_layers
    found = np.zeros((n, len(LAYER_FEATURES)))
    column = {name: found[:, i] for i, name in enumerate(LAYER_FEATURES)}
    heads, kv_heads = np.array(shape.heads), np.array(shape.kv_heads)
    per_token = _FLOAT_BYTES * tokens
    column["q"][:] = per_token * heads * np.array(shape.head_dim_k)
    column["k"][:] = per_token * kv_heads * np.array(shape.head_dim_k)
    column["v"][:] = per_token * kv_heads * np.array(shape.head_dim_v)
    _add_attention(column, shape, args, tokens, heads)
    # Without a cache every token sees the micro-batch.
    visible = cells(shape, args) if shape.causal else np.full(n, tokens)
    seen = visible * (kv_heads > 0)
    windowed = np.array(shape.window_layers or (False,) * n)
    mask_bytes = (2 if args.flash_attention != "off" else _FLOAT_BYTES) * tokens
    column["mask"][:] = np.where(windowed, 0, seen) * mask_bytes
    column["mask_window"][:] = np.where(windowed, seen, 0) * mask_bytes
    column["scores"][:] = np.where(windowed, 0, seen) * heads * per_token
    column["scores_window"][:] = np.where(windowed, seen, 0) * heads * per_token
    _add_feed_forward(column, shape, per_token)
    if shape.is_recurrent:
        recurrent = np.array(shape.recurrent_layers, dtype=bool) * per_token
        column["inner"][:] = recurrent * shape.ssm_inner
        column["conv"][:] = recurrent * _conv_width(shape)
        column["ssm_heads"][:] = recurrent * shape.ssm_dt_rank
    return found


def _add_attention(
    column: dict[str, Matrix],
    shape: ModelShape,
    args: EngineArgs,
    tokens: int,
    heads: NDArray[np.int64],
) -> None:
    per_token = _FLOAT_BYTES * tokens
    if args.flash_attention == "off":
        # The values are stored transposed then: an 8-byte index for every element.
        column["v_ids"][:] = 2 * column["v"]
    if shape.is_mla:
        column["latent"][:] = per_token * heads * shape.kv_lora_rank
        column["q_mla"][:] = per_token * heads * shape.head_dim_k_mla
        column["v_mla"][:] = per_token * heads * shape.head_dim_v_mla


def _add_feed_forward(column: dict[str, Matrix], shape: ModelShape, per_token: int) -> None:
    ff = np.array(shape.n_ff)
    if not shape.n_experts:
        column["ff"][:] = per_token * ff
        return
    experts = np.arange(shape.n_layers) >= shape.n_layers_dense_lead
    used = per_token * shape.n_experts_used
    expert_ff = np.array(shape.n_ff_expert)
    column["ff"][:] = np.where(experts, 0, per_token * ff)
    column["expert_ff"][:] = np.where(experts, used * expert_ff, 0)
    column["expert_out"][:] = np.where(experts, used * shape.n_embd, 0)
    column["router"][:] = np.where(experts, per_token * shape.n_experts, 0)
    column["shared_ff"][:] = np.where(experts, per_token * shape.n_experts_shared * expert_ff, 0)


def _conv_width(shape: ModelShape) -> int:
    return shape.ssm_inner + 2 * shape.ssm_groups * shape.ssm_state


def _shared_row(
    shape: ModelShape, args: EngineArgs, sizes: Effective, tokens: int, layers: Matrix
) -> Matrix:
    widest = layers.max(axis=0)
    at = {name: widest[i] for i, name in enumerate(LAYER_FEATURES)}
    states = args.slots * _FLOAT_BYTES if shape.is_recurrent else 0
    values = {
        "ids": _FLOAT_BYTES * tokens,
        "embd": _FLOAT_BYTES * tokens * shape.n_embd,
        "logits": _FLOAT_BYTES * sizes.n_outputs * shape.n_vocab,
        "output_rows": _FLOAT_BYTES * sizes.n_outputs * shape.n_embd,
        "rotation": rotation_bytes(shape, args),
        "all_mask": at["mask"],
        "all_mask_window": at["mask_window"],
        "all_v_ids": at["v_ids"],
        "states": states * shape.ssm_inner * shape.ssm_state,
        "conv_states": states * max(shape.ssm_conv_kernel - 1, 0) * _conv_width(shape),
    }
    return np.array([values[name] for name in SHARED_FEATURES], dtype=np.float64)
