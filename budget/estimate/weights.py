"""Weights by device, for every n_gpu_layers at once.

Source: llama.cpp `src/llama-model.cpp`, `load_tensors` (which layer goes where) and
`src/llama-model-loader.cpp` (tied embeddings); `ggml/src/ggml-cpu/repack.cpp` (what is repacked).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.estimate.arguments import pad
from budget.estimate.shape import GGML_TYPES, ModelShape, TensorShape

Bytes = NDArray[np.int64]
HOST_ALIGNMENT: Final = 32  # TENSOR_ALIGNMENT of the CPU's buffers
DEVICE_ALIGNMENT: Final = 128
_DEVICE_ROW: Final = 512  # MATRIX_ROW_PADDING, ggml/src/ggml-cuda/common.cuh
_INPUT_TENSORS: Final = ("token_embd", "token_types", "position_embd", "per_layer_token_embd")
_TIED: Final = "token_embd.weight"
# On x86-64 with AVX2. Where a CPU repacks less, only a tied embedding's copy differs.
REPACKED_TYPES: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ROWS: Final = 8


@dataclass(frozen=True, slots=True)
class WeightsByLayers:
    """Bytes by number of layers on the device: entry `k` is n_gpu_layers = k, 0 to n_layers + 1."""

    host: Bytes
    device: Bytes


def tensor_bytes(tensor: TensorShape, *, on_device: bool) -> int:
    """A tensor's bytes in its buffer: aligned, and on a device with padded quantized rows."""
    n_bytes = tensor.n_bytes
    if not on_device:
        return pad(n_bytes, HOST_ALIGNMENT)
    block, block_bytes = GGML_TYPES[tensor.ggml_type]
    missing = -tensor.dims[0] % _DEVICE_ROW
    if block > 1 and missing:
        n_bytes += missing // block * block_bytes
    return pad(n_bytes, DEVICE_ALIGNMENT)


def repacked(tensor: TensorShape) -> bool:
    """Whether the CPU holds this matrix in its own layout, in a buffer of its own."""
    return tensor.ggml_type in REPACKED_TYPES and tensor.dims[1] % _REPACKED_ROWS == 0


def _place(shape: ModelShape, *, on_device: bool) -> tuple[int, Bytes]:
    """Bytes of the input tensors, and of each layer with the output as the last entry."""
    layers = np.zeros(shape.n_layers + 1, dtype=np.int64)
    inputs = 0
    for tensor in shape.tensors:
        layer = tensor.layer
        n_bytes = tensor_bytes(tensor, on_device=on_device)
        if tensor.name.split(".", 1)[0] in _INPUT_TENSORS:
            inputs += tensor_bytes(tensor, on_device=False)
        else:
            layers[shape.n_layers if layer is None else layer] += n_bytes
    return inputs, layers


def weights_by_layers(shape: ModelShape, *, repack: bool = True) -> WeightsByLayers:
    """Weights on the host and on one device for n_gpu_layers 0 to n_layers + 1.

    The output counts as the layer after the last one and is the first to be offloaded; the input
    embedding stays on the host. A tied embedding is there twice when the output uses another buffer
    type than the input: on a device, or repacked.
    """
    inputs, on_host = _place(shape, on_device=False)
    _, on_device = _place(shape, on_device=True)
    tied = shape.tensor(_TIED) if shape.tied_embeddings and shape.causal else None
    if tied is not None:
        on_device[-1] += tensor_bytes(tied, on_device=True)
        if repack and repacked(tied):
            on_host[-1] += tensor_bytes(tied, on_device=False)
    zero = np.zeros(1, dtype=np.int64)
    device = np.concatenate([zero, np.cumsum(on_device[::-1])])
    left = np.concatenate([np.cumsum(on_host)[::-1], zero])
    return WeightsByLayers(inputs + left, device)
