"""A model's tensors as arrays, made once when its header is read, so that placements cost no loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

INPUT: Final = -1
SHARED: Final = -2
UNUSED: Final = -3
_INPUTS: Final = frozenset({"token_embd", "token_types", "position_embd", "per_layer_token_embd"})
# llama.cpp makes the first of these with layer 0, and copies of the second for every buffer type
# that has a layer.
_FIRST_LAYER: Final = frozenset({"token_embd_norm", "per_layer_model_proj", "per_layer_proj_norm"})
_OF_ALL_LAYERS: Final = frozenset({"rope_freqs", "rope_factors_long", "rope_factors_short"})
_TIED: Final = "token_embd.weight"
# On x86-64 with AVX2. Where a CPU repacks less, only copies of tied embeddings differ.
REPACKED_TYPES: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_REPACKED_ROWS: Final = 8


class Tensor(Protocol):
    """What is read of a tensor."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def ggml_type(self) -> str:
        """Its type by name."""

    @property
    def dims(self) -> tuple[int, ...]:
        """Its dimensions, row length first."""

    @property
    def n_bytes(self) -> int:
        """Its bytes in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorTable:
    """One entry per tensor: its layer (the output is `n_layers`; `INPUT`, `SHARED` and what is not loaded
    are negative), bytes, row length, its type's block (elements, bytes) and whether a CPU repacks it.

    `tied` is the index of the input embedding, -1 without one; `sharing` has an entry per layer, whether it
    has what layers share.
    """  # noqa: D205

    layer: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    row: NDArray[np.int64]
    block: NDArray[np.int64]
    block_bytes: NDArray[np.int64]
    repacked: NDArray[np.bool_]
    tied: int
    sharing: NDArray[np.bool_]


def _layer_of(name: str, n_layers: int) -> int:
    head, _, rest = name.partition(".")
    if head == "blk":
        number = rest.partition(".")[0]
        return int(number) if number.isdecimal() else n_layers
    if head in _INPUTS:
        return INPUT
    if head in _FIRST_LAYER:
        return 0
    return SHARED if head in _OF_ALL_LAYERS else n_layers


def tensor_table(
    tensors: Sequence[Tensor],
    n_layers: int,
    types: dict[str, tuple[int, int]],
    *,
    n_unused: int = 0,
    norm_is_output: bool = False,
    sharing: Sequence[bool] = (),
) -> TensorTable:
    """The table of a model; `types` gives elements and bytes of a block by type.

    The last `n_unused` layers are not loaded. `sharing` layers have what layers share (all by default).
    `norm_is_output`: the norm that is called the embedding's is the output's.
    """
    numbers = np.empty((5, len(tensors)), dtype=np.int64)
    repacked = np.zeros(len(tensors), dtype=bool)
    tied = -1
    for i, tensor in enumerate(tensors):
        name, kind, dims = tensor.name, tensor.ggml_type, tensor.dims
        if name == _TIED:
            tied = i
        layer = min(_layer_of(name, n_layers), n_layers)
        if n_layers - n_unused <= layer < n_layers:
            layer = UNUSED
        elif norm_is_output and name.startswith("token_embd_norm."):
            layer = n_layers
        numbers[:, i] = (layer, tensor.n_bytes, max(1, *dims[:1]), *types.get(kind, (1, 4)))
        repacked[i] = kind in REPACKED_TYPES and len(dims) > 1 and dims[1] % _REPACKED_ROWS == 0
    layers, sizes, rows, blocks, block_bytes = numbers
    shared = np.array(sharing or (True,) * n_layers, dtype=bool)
    return TensorTable(layers, sizes, rows, blocks, block_bytes, repacked, tied, shared)
