"""A bound of the compute buffers of a model whose graph is not known: generous, and not low.

What a layer computes is as wide as its matrices have rows, so that the file's tensors say how much there
can be. Counted are, for a full micro-batch: twice the results of all matrices of a side's widest layer (of
experts, those that a token uses), as if none of their memory were used again; a few times the width of the
model; attention's scores without flash attention; masks, indices and copies of the cache; recurrent state;
the rows of logits; and what crosses from side to side. docs/accuracy.md has it beside known graphs. The
first load's measurement takes its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.errors import MeasurementFailed
from budget.footprint import EngineArgs
from budget.memory.arguments import effective, pad
from budget.memory.kv_cache import cell_counts, kv_by_layer
from budget.memory.recurrent import state_floats
from budget.memory.shape import ModelShape
from budget.memory.split import ON_HOST, device_of_layers

Floats = NDArray[np.float64]

_FLOAT_BYTES: Final = 4
_RESULTS: Final = 2
"""Times the results of a layer's matrices: before and after what is done to each of them."""
_WIDTHS: Final = 8
"""Activations beside them: residuals, norms, a router's numbers."""
_CROSSING: Final = 4
"""Activations that a side takes from another one, and gives to it."""
_CHUNK: Final = 64
"""Tokens that recurrent layers look at together."""
_CHUNKS: Final = 6
_PIPELINE_COPIES: Final = 4
_MARGIN: Final = 1.1
_NO_FLASH: Final = frozenset({"grok", "t5"})
"""Architectures whose attention llama.cpp computes without flash attention, whatever is asked for."""
_CUDA_HEADS: Final = frozenset({40, 64, 72, 80, 96, 112, 128, 192, 256, 320, 512, 576})
"""Heads for which CUDA has flash attention (`ggml-cuda/fattn.cu`); of others `auto` makes none."""
_EXPERTS: Final = "_exps."
_OTHER_MEMORY: Final = frozenset(
    {"deepseek32", "deepseek4", "dflash", "dots3note", "glm-dsa", "glm5-next", "hy-v4", "kimi-k3"}
    | {"minimax-01", "minimax-m3", "qwen4exp", "t5"}
)
"""Architectures whose memory is of no known kind (`create_memory`): no bound of it is given."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """A full micro-batch: its tokens, its rows of logits, cells of a stream, streams, slots."""

    tokens: int
    outputs: int
    cells: int
    streams: int
    slots: int
    flash: bool


def check_memory(shape: ModelShape) -> None:
    """Refuse an architecture whose cache is of a kind that is not known.

    Raises:
        MeasurementFailed: it is. Facts: `architecture`.
    """
    if shape.architecture in _OTHER_MEMORY:
        raise MeasurementFailed(
            f"there is no closed form for the cache of the architecture {shape.architecture!r}.",
            hint="Measure it by dry run (source auto or dry-run).",
            architecture=shape.architecture,
        )


def bound_bytes(shape: ModelShape, args: EngineArgs) -> tuple[int, ...]:
    """Bytes that the host's compute buffer and each device's do not pass."""
    sizes = effective(args, causal=shape.causal)
    tokens = pad(sizes.n_tokens, args.slots)
    cells = cell_counts(shape, args)[0] if shape.causal else tokens
    batch = _Batch(
        tokens, sizes.n_outputs, cells, sizes.n_streams, args.slots, _is_flash(shape, args)
    )
    layers = _layers(shape, args, batch)
    places = device_of_layers(args.tensor_split, args.n_gpu_layers, shape.n_layers)
    devices = range(len(args.layer_devices))
    pipeline = len(devices) > 1 and args.n_gpu_layers > shape.n_layers
    copies = _PIPELINE_COPIES if pipeline else 1
    activations = _FLOAT_BYTES * tokens * shape.n_embd
    crossing = copies * (_CROSSING * activations + _inputs(shape, batch))
    if shape.is_recurrent or shape.n_layers_shared_kv:
        # Attention may be computed beside the next layer's state, or read another layer's cache.
        crossing += copies * int(kv_by_layer(shape, args).max(initial=0))
    if not pipeline:
        # What follows the host's last matrix is computed on the device: experts' results are weighed there.
        crossing += 2 * shape.n_experts_used * activations
    found = []
    for side in (ON_HOST, *devices):
        mine = places == side
        n_bytes = int(layers[mine[:-1]].max(initial=0.0)) + crossing
        if mine[-1]:
            n_bytes += _FLOAT_BYTES * batch.outputs * (shape.n_vocab + _WIDTHS * shape.n_embd)
        if side == ON_HOST:
            n_bytes += 2 * _FLOAT_BYTES * tokens * _input_width(shape)
        found.append(int(n_bytes * _MARGIN) if side == ON_HOST or mine.any() else 0)
    return tuple(found)


def _is_flash(shape: ModelShape, args: EngineArgs) -> bool:
    if args.flash_attention == "off" or shape.architecture in _NO_FLASH:
        return False
    if args.flash_attention == "auto" and shape.is_recurrent and shape.has_attention:
        return not 0 < args.n_gpu_layers <= shape.n_layers  # a border may turn it off
    cuda = any(name.startswith("cuda:") for name in args.layer_devices)
    heads = {0, *shape.head_dim_k} - {0}
    return args.flash_attention == "on" or not cuda or heads <= _CUDA_HEADS


def _layers(shape: ModelShape, args: EngineArgs, batch: _Batch) -> Floats:
    """Bytes of each layer's results."""
    t = shape.layers
    by_token = _RESULTS * _matrix_rows(shape) + _WIDTHS * (shape.n_embd + shape.n_experts)
    if not batch.flash:
        by_token += 2 * t.heads * batch.cells
    indexers = shape.key("attention.indexer.head_count")
    if isinstance(indexers, int) and not isinstance(indexers, bool):
        by_token += 2 * (indexers + 4) * batch.cells
    heads = max(shape.ssm_dt_rank, *shape.heads, 1)
    chunks = _CHUNKS * _CHUNK * heads + _CHUNK * max(shape.ssm_inner, shape.n_embd)
    by_token += t.recurrent * chunks
    found: Floats = by_token * _FLOAT_BYTES * batch.tokens
    found += t.recurrent * 4 * _FLOAT_BYTES * batch.slots * sum(state_floats(shape))
    # Flash attention reads an F32 cache as F16.
    widths = t.width_k * (args.kv_type_k == "f32") + t.width_v * (args.kv_type_v == "f32")
    return found + 2 * batch.streams * batch.cells * widths


def _matrix_rows(shape: ModelShape) -> Floats:
    """Rows of all matrices of each layer; of experts, of those that a token uses."""
    found = np.zeros(shape.n_layers)
    used = shape.n_experts_used / shape.n_experts if shape.n_experts else 1.0
    for tensor in shape.tensors:
        layer = tensor.layer
        if layer is None or layer >= shape.n_layers or not tensor.dims[0]:
            continue
        rows = tensor.n_elements / tensor.dims[0]
        found[layer] += rows * (used if _EXPERTS in tensor.name else 1.0) if rows > 1 else 0.0
    return found


def _input_width(shape: ModelShape) -> int:
    """Elements that are looked up for a token, in all tables, and rows of what belongs to no layer."""
    found = 0
    for tensor in shape.tensors:
        if tensor.layer is None and len(tensor.dims) > 1:
            found += tensor.dims[0]
            found += tensor.dims[1] if tensor.dims[1] != shape.n_vocab else 0
    return found


def _inputs(shape: ModelShape, batch: _Batch) -> int:
    """Masks of both caches, indices of rows, positions, and what rotates a quantized cache."""
    t = shape.layers
    masks = 2 * batch.cells * batch.tokens * (2 if batch.flash else _FLOAT_BYTES)
    ids = 16 * 8 * batch.tokens
    if not batch.flash:
        ids += 2 * 8 * batch.tokens * int(t.width_v.max(initial=0))
    rotation = 2 * _FLOAT_BYTES * (max(shape.head_dim_k, default=0) ** 2 + _CHUNK**2)
    return masks + ids + rotation
