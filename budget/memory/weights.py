"""Weights by device, for every n_gpu_layers at once.

Source: llama.cpp `src/llama-model.cpp`, `load_tensors` (which layer goes where), `src/llama-arch.cpp`
(which tensors are inputs), `src/llama-model-loader.cpp` (tied embeddings, tensors shared by layers);
`ggml/src/ggml-cpu/repack.cpp` (what is repacked), `ggml/src/ggml-cuda/ggml-cuda.cu` (row padding).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.memory.shape import ModelShape
from budget.memory.tensor_table import INPUT, SHARED, TensorTable

Bytes = NDArray[np.int64]
HOST_ALIGNMENT: Final = 32  # TENSOR_ALIGNMENT of the CPU's buffers, and of an RPC server's
CUDA_ALIGNMENT: Final = 128
_CUDA_ROW: Final = 512  # MATRIX_ROW_PADDING, ggml/src/ggml-cuda/common.cuh

_OUTPUT_FIRST: Final = frozenset({"gemma3n", "gemma4"})
"""Which make the output's copy of a tied embedding before the embedding: there are always two then."""


@dataclass(frozen=True, slots=True)
class WeightsByLayers:
    """Bytes by number of layers on the device: entry `k` is n_gpu_layers = k, 0 to n_layers + 1.

    `repacked` is the part of the host's that the CPU holds in its own layout.
    """

    host: Bytes
    device: Bytes
    repacked: Bytes


def is_cuda(device: str) -> bool:
    """Whether a device lays tensors out as CUDA does: every one that is not an RPC server's."""
    return not device.upper().startswith("RPC")


def _padded(n_bytes: Bytes, multiple: int) -> Bytes:
    return -(-n_bytes // multiple) * multiple


def device_tensor_bytes(table: TensorTable, device: str) -> Bytes:
    """Each tensor's bytes in a device's buffer: aligned, on CUDA with quantized rows padded to 512.

    An RPC device is taken to be a CPU's; CUDA's figures have not been confirmed on a GPU.
    """
    if not is_cuda(device):
        return _padded(table.n_bytes, HOST_ALIGNMENT)
    missing = np.where(table.block > 1, -table.row % _CUDA_ROW, 0)
    return _padded(table.n_bytes + missing // table.block * table.block_bytes, CUDA_ALIGNMENT)


def _by_layer(layer: Bytes, n_bytes: Bytes, n_layers: int) -> Bytes:
    """Sums by layer, the output as the last entry."""
    kept = layer >= 0
    return np.bincount(layer[kept], n_bytes[kept], n_layers + 1).astype(np.int64)


def weights_by_layers(
    shape: ModelShape, *, repack: bool = True, device: str = "cuda:0"
) -> WeightsByLayers:
    """Weights on the host and on one device for n_gpu_layers 0 to n_layers + 1.

    The output counts as the layer after the last one and is the first to be offloaded; the input
    embedding stays on the host. A tied embedding is there twice when the output uses another buffer
    type than the input: on a device, or repacked. What all layers share (rope factors) is on each
    side that has a layer.
    """
    tied = shape.tied_embeddings and shape.causal
    rpc = not is_cuda(device)
    twice = shape.architecture in _OUTPUT_FIRST
    return _weights(shape.table, shape.n_layers, tied=tied, twice=twice, repack=repack, rpc=rpc)


def weights_of_layers(shape: ModelShape, device: str) -> tuple[Bytes, int]:
    """Bytes in a device's buffers: of each layer, the output's as the last, and what layers share.

    A device has the shared ones once as soon as it has a layer of `shape.table.sharing`.
    """
    table, n_layers = shape.table, shape.n_layers
    n_bytes = device_tensor_bytes(table, device)
    found = _by_layer(table.layer, n_bytes, n_layers)
    if shape.tied_embeddings and shape.causal and table.tied >= 0:
        found[-1] += n_bytes[table.tied]
    return found, int(n_bytes[table.layer == SHARED].sum())


@lru_cache(maxsize=128)
def _weights(
    table: TensorTable, n_layers: int, *, tied: bool, twice: bool, repack: bool, rpc: bool
) -> WeightsByLayers:
    host_bytes = _padded(table.n_bytes, HOST_ALIGNMENT)
    device_bytes = device_tensor_bytes(table, "RPC" if rpc else "cuda")
    on_host = _by_layer(table.layer, host_bytes, n_layers)
    on_device = _by_layer(table.layer, device_bytes, n_layers)
    repacked = _by_layer(table.layer, np.where(table.repacked, host_bytes, 0), n_layers)
    if tied and table.tied >= 0:
        on_device[-1] += device_bytes[table.tied]
        copied = table.repacked[table.tied]
        repacked[-1] += host_bytes[table.tied] if copied else 0
        on_host[-1] += host_bytes[table.tied] if twice or (copied and repack) else 0
    inputs = int(host_bytes[table.layer == INPUT].sum())
    shared = table.layer == SHARED
    layers = np.arange(n_layers + 2)
    # The first and the last layer that has what layers share.
    sharing = np.flatnonzero(table.sharing)
    first, last = (sharing[0], sharing[-1]) if len(sharing) else (n_layers, -1)
    host = inputs + _left(on_host)
    host += (layers <= n_layers - first) * int(host_bytes[shared].sum())
    moved = np.concatenate([[0], np.cumsum(on_device[::-1])])
    moved += (layers > n_layers - last) * int(device_bytes[shared].sum())
    found = WeightsByLayers(host, moved, _left(repacked) * int(repack))
    for array in (found.host, found.device, found.repacked):
        array.setflags(write=False)  # it is shared by all callers
    return found


def _left(by_layer: Bytes) -> Bytes:
    """What is left on the host by n_gpu_layers."""
    return np.concatenate([np.cumsum(by_layer)[::-1], [0]])
