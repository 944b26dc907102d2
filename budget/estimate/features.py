"""The sizes that a compute buffer is made of, on both sides and for every n_gpu_layers at once.

Each is the bytes of one tensor of the graph for a full micro-batch; a compute buffer is the largest of
several weighted sums of them (`budget.estimate.compute`). Source of the tensors: llama.cpp
`src/llama-graph.cpp` and `src/models/*.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from budget.estimate.arguments import effective, pad
from budget.estimate.kv import cell_counts
from budget.estimate.layer_table import LayerTable
from budget.estimate.shape import GGML_TYPES, ModelShape
from budget.footprint import EngineArgs

Matrix = NDArray[np.float64]
_FLOAT_BYTES: Final = 4
_HALF_BYTES: Final = 2

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
    "k_cast",
    "v_cast",
    "k_cast_window",
    "v_cast_window",
)
"""What the widest layer of a side has, per micro-batch: 0 where no layer of that side has it."""

FEATURES: Final = SHARED_FEATURES + LAYER_FEATURES


def rotation_bytes(shape: ModelShape, args: EngineArgs) -> int:
    """Bytes of the matrices that rotate a quantized cache: 0 where nothing is rotated."""
    return sum(_FLOAT_BYTES * n**2 for n in rotations(shape, args))


def rotations(shape: ModelShape, args: EngineArgs) -> tuple[int, int]:
    """Rows of the matrices that rotate the keys and the values of a quantized cache; 0 for none.

    Heads are rotated when they are a multiple of 64: keys by the largest power of two in them,
    values by 64 (`src/llama-kv-cache.cpp`, `attn_rot_k`, `build_input_k_rot`).
    """
    if not shape.causal:
        return 0, 0
    head_k, head_v = max(shape.head_dim_k, default=0), max(shape.head_dim_v, default=0)
    rotates_k = _is_quantized(args.kv_type_k) and head_k and head_k % 64 == 0
    rotates_v = _is_quantized(args.kv_type_v) and head_v and head_v % 64 == 0
    return (head_k & -head_k) if rotates_k else 0, 64 if rotates_v else 0


def _is_quantized(kind: str) -> bool:
    return GGML_TYPES[kind.upper()][0] > 1


def mode(shape: ModelShape, args: EngineArgs) -> str:
    """Which kernels the graph uses: `flash` or `scores` attention, `-rotated` with such a cache.

    `-cast` is flash attention over an F32 cache, which it reads as F16 (`src/llama-graph.cpp`,
    `build_attn_mha`).
    """
    attention = "scores" if args.flash_attention == "off" else "flash"
    if any(_cast_bytes(shape, args)):
        attention = f"{attention}-cast"
    return f"{attention}-rotated" if rotation_bytes(shape, args) else attention


def _cast_bytes(shape: ModelShape, args: EngineArgs) -> tuple[int, int]:
    """Bytes of a copied element of the keys and of the values; 0 where they are read as they are."""
    if not (shape.causal and shape.has_attention) or args.flash_attention == "off":
        return 0, 0
    return _HALF_BYTES * (args.kv_type_k == "f32"), _HALF_BYTES * (args.kv_type_v == "f32")


def feature_matrices(shape: ModelShape, args: EngineArgs) -> tuple[Matrix, Matrix]:
    """Bytes by n_gpu_layers (rows, 0 to n_layers + 1) and feature (columns), of host and device."""
    scales = feature_scales(shape, args)
    host, device = feature_counts(shape)
    return host.rows[host.row_of] * scales, device.rows[device.row_of] * scales


@dataclass(frozen=True, slots=True, eq=False)
class FeatureCounts:
    """Elements per token (or cell, row, state) of each feature on one side.

    `rows` are the different rows that there are, `row_of` says by n_gpu_layers which one it is: most
    models have layers of one or two kinds.
    """

    rows: Matrix
    row_of: NDArray[np.int64]


def feature_counts(shape: ModelShape) -> tuple[FeatureCounts, FeatureCounts]:
    """What the model alone decides, of host and device. Made once for a model.

    Bytes are these times `feature_scales`.
    """
    known = _COUNTS.get(shape.layers)
    if known is None:
        known = _COUNTS[shape.layers] = _feature_counts(shape)
    return known


_COUNTS: WeakKeyDictionary[LayerTable, tuple[FeatureCounts, FeatureCounts]] = WeakKeyDictionary()


def _feature_counts(shape: ModelShape) -> tuple[FeatureCounts, FeatureCounts]:
    layers = _layer_counts(shape)
    n, width = layers.shape
    ahead, behind = np.zeros((2, n + 1, width))
    np.maximum.accumulate(layers, axis=0, out=ahead[1:])
    np.maximum.accumulate(layers[::-1], axis=0, out=behind[1:])
    # Row k of the host has n + 1 - k layers (all of them with 0 or 1 on the device).
    on_host = np.concatenate([ahead[-1:], ahead[::-1]])
    on_device = np.concatenate([behind[:1], behind])
    shared = _shared_counts(shape, dict(zip(LAYER_FEATURES, ahead[-1], strict=True)))
    row = np.array([shared[name] for name in SHARED_FEATURES])
    return _distinct(row, on_host), _distinct(row, on_device)


def counts_of_layers(shape: ModelShape, layers: NDArray[np.bool_]) -> Matrix:
    """What a device that has these layers (and nothing of the others) counts, by feature."""
    own = _layer_counts(shape)[layers].max(axis=0, initial=0.0)
    shared = _shared_counts(shape, dict(zip(LAYER_FEATURES, own, strict=True)))
    return np.concatenate([[shared[name] for name in SHARED_FEATURES], own])


def _distinct(shared: Matrix, layers: Matrix) -> FeatureCounts:
    """The rows without repetitions: widest layers change a few times along a model."""
    changes = (layers[1:] != layers[:-1]).any(axis=1)
    row_of = np.concatenate([[0], np.cumsum(changes)])
    kept = layers[np.concatenate([[True], changes])]
    return FeatureCounts(np.hstack([np.tile(shared, (len(kept), 1)), kept]), row_of)


def _layer_counts(shape: ModelShape) -> Matrix:
    layers = shape.layers
    found = np.zeros((shape.n_layers, len(LAYER_FEATURES)))
    column = {name: found[:, i] for i, name in enumerate(LAYER_FEATURES)}
    column["q"][:] = layers.width_q
    column["k"][:] = layers.width_k
    column["v"][:] = column["v_ids"][:] = layers.width_v
    column["mask"][:] = layers.has_cache & ~layers.windowed
    column["mask_window"][:] = layers.has_cache & layers.windowed
    column["scores"][:] = layers.heads * column["mask"]
    column["scores_window"][:] = layers.heads * column["mask_window"]
    for name, width in (("k_cast", layers.width_k), ("v_cast", layers.width_v)):
        column[name][:] = width * column["mask"]
        column[f"{name}_window"][:] = width * column["mask_window"]
    if shape.is_mla:
        column["latent"][:] = layers.heads * shape.kv_lora_rank
        column["q_mla"][:] = layers.heads * shape.head_dim_k_mla
        column["v_mla"][:] = layers.heads * shape.head_dim_v_mla
    column["inner"][:] = layers.recurrent * shape.ssm_inner
    column["conv"][:] = layers.recurrent * _conv_width(shape)
    column["ssm_heads"][:] = layers.recurrent * shape.ssm_dt_rank
    _add_feed_forward(column, shape)
    return found


def _add_feed_forward(column: dict[str, Matrix], shape: ModelShape) -> None:
    layers = shape.layers
    if not shape.n_experts:
        column["ff"][:] = layers.ff
        return
    experts = np.arange(shape.n_layers) >= shape.n_layers_dense_lead
    column["ff"][:] = ~experts * layers.ff
    column["expert_ff"][:] = experts * shape.n_experts_used * layers.expert_ff
    column["expert_out"][:] = experts * shape.n_experts_used * shape.n_embd
    column["router"][:] = experts * shape.n_experts
    column["shared_ff"][:] = experts * shape.n_experts_shared * layers.expert_ff


def _conv_width(shape: ModelShape) -> int:
    return shape.ssm_inner + 2 * shape.ssm_groups * shape.ssm_state


def _shared_counts(shape: ModelShape, widest: Mapping[str, float]) -> dict[str, float]:
    return {
        "ids": 1,
        "embd": shape.n_embd,
        "logits": shape.n_vocab,
        "output_rows": shape.n_embd,
        "rotation": 1,
        "all_mask": widest["mask"],
        "all_mask_window": widest["mask_window"],
        "all_v_ids": widest["v_ids"],
        "states": shape.ssm_inner * shape.ssm_state * shape.is_recurrent,
        "conv_states": max(shape.ssm_conv_kernel - 1, 0) * _conv_width(shape) * shape.is_recurrent,
    }


def feature_scales(shape: ModelShape, args: EngineArgs) -> Matrix:
    """What the arguments decide: bytes for each element of `feature_counts`."""
    sizes = effective(args, causal=shape.causal)
    tokens = pad(sizes.n_tokens, args.slots)
    per_token = _FLOAT_BYTES * tokens
    # Without a cache every token sees the micro-batch.
    everything, window = cell_counts(shape, args) if shape.causal else (tokens, tokens)
    flash = args.flash_attention != "off"
    mask_bytes = (2 if flash else _FLOAT_BYTES) * tokens
    # Without flash attention values are stored transposed: an 8-byte index for every element.
    v_ids = 0 if flash else 8 * tokens
    k_cast, v_cast = (sizes.n_streams * n_bytes for n_bytes in _cast_bytes(shape, args))
    special = {
        "k_cast": k_cast * everything,
        "v_cast": v_cast * everything,
        "k_cast_window": k_cast * window,
        "v_cast_window": v_cast * window,
        "logits": _FLOAT_BYTES * sizes.n_outputs,
        "output_rows": _FLOAT_BYTES * sizes.n_outputs,
        "rotation": rotation_bytes(shape, args),
        "all_mask": everything * mask_bytes,
        "all_mask_window": window * mask_bytes,
        "all_v_ids": v_ids,
        "states": _FLOAT_BYTES * args.slots,
        "conv_states": _FLOAT_BYTES * args.slots,
        "mask": everything * mask_bytes,
        "mask_window": window * mask_bytes,
        "scores": everything * per_token,
        "scores_window": window * per_token,
        "v_ids": v_ids,
    }
    return np.array([special.get(name, per_token) for name in FEATURES], dtype=np.float64)
