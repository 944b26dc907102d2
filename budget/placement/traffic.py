"""What decoding one token reads, layer by layer and type by type, and the seconds that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from budget.footprint import EngineArgs
from budget.memory.kv_cache import cells, kv_by_layer
from budget.memory.shape import ModelShape, TensorShape
from budget.placement.machine_rates import SideFigures

Seconds = NDArray[np.float64]

_LOOKED_UP: Final = ("token_embd", "token_types", "position_embd", "per_layer_token_embd")
_TIED: Final = "token_embd.weight"
_EXPERTS: Final = "_exps."


@dataclass(frozen=True, slots=True)
class DecodeTraffic:
    """Bytes read for one token.

    `weights` has a row for each of `types` and a column for each layer, the output as the last;
    `kv` a figure for each layer, the output's (none) as the last. F16 stands for the cache's type.
    """

    types: tuple[str, ...]
    weights: NDArray[np.float64]
    kv: NDArray[np.float64]

    @property
    def n_layers(self) -> int:
        """The layers, without the output."""
        return int(self.weights.shape[1]) - 1

    @property
    def total_bytes(self) -> float:
        """All bytes of one token."""
        return float(self.weights.sum() + self.kv.sum())


def decode_traffic(shape: ModelShape, args: EngineArgs, *, fill_tokens: int = 0) -> DecodeTraffic:
    """What one token of one request reads with `fill_tokens` in its context.

    An input embedding is looked up, one row a token, and not counted; tied, it is read as the
    output. Of experts, those that a token uses are counted. The cache is read as far as it is
    filled (a sliding window at most as far as it reaches).
    """
    types = tuple(sorted({tensor.ggml_type for tensor in shape.tensors})) or ("F16",)
    rows = {name: number for number, name in enumerate(types)}
    weights = np.zeros((len(types), shape.n_layers + 1))
    used = shape.n_experts_used / shape.n_experts if shape.n_experts else 1.0
    for tensor in shape.tensors:
        if _is_looked_up(tensor, shape):
            continue
        layer = tensor.layer
        share = used if _EXPERTS in tensor.name else 1.0
        column = shape.n_layers if layer is None else layer
        weights[rows[tensor.ggml_type], column] += tensor.n_bytes * share
    return DecodeTraffic(types, weights, _kv_read(shape, args, fill_tokens))


def _is_looked_up(tensor: TensorShape, shape: ModelShape) -> bool:
    if shape.tied_embeddings and shape.causal and tensor.name == _TIED:
        return False
    return tensor.name.split(".", 1)[0] in _LOOKED_UP


def _kv_read(shape: ModelShape, args: EngineArgs, fill_tokens: int) -> NDArray[np.float64]:
    read = np.zeros(shape.n_layers + 1)
    if fill_tokens:
        there = cells(shape, args)
        per_cell = kv_by_layer(shape, args) / np.maximum(there * args.slots, 1)
        read[:-1] = per_cell * np.minimum(there, fill_tokens)
    return read


def layer_seconds(traffic: DecodeTraffic, side: SideFigures) -> Seconds:
    """Seconds of each layer, the output as the last, were it on that side."""
    per_byte = np.array([1.0 / side.rate(kind) for kind in traffic.types])
    seconds: Seconds = per_byte @ traffic.weights + traffic.kv / side.rate("F16")
    seconds[:-1] += side.layer_s
    return seconds


def decode_seconds(
    traffic: DecodeTraffic, host: SideFigures, device: SideFigures | None = None
) -> Seconds:
    """Seconds of one token for n_gpu_layers 0 to n_layers + 1; entry 0 only without a device.

    The output goes first, then layers from the last on; both sides work one after the other.
    """
    on_host = layer_seconds(traffic, host)
    if device is None:
        return np.array([host.token_s + on_host.sum()])
    on_device = layer_seconds(traffic, device)
    zero = np.zeros(1)
    left = np.concatenate([np.cumsum(on_host)[::-1], zero])
    moved = np.concatenate([zero, np.cumsum(on_device[::-1])])
    moved[1:] += device.token_s
    moved[1:-1] += device.crossing_s
    seconds: Seconds = left + moved + host.token_s
    return seconds
