"""Recurrent state, layer by layer: F32, one state per slot, whatever the context.

Source: llama.cpp `src/llama-memory-recurrent.cpp`; sizes of `src/llama-hparams.cpp` (`n_embd_r`,
`n_embd_s`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budget.footprint import EngineArgs
from budget.memory.shape import ModelShape

_FLOAT_BYTES = 4
_TOKEN_SHIFTS = 2


def recurrent_by_layer(shape: ModelShape, args: EngineArgs) -> NDArray[np.int64]:
    """Bytes of recurrent state of each layer: (convolution + state-space) floats x slots."""
    each = sum(state_floats(shape)) * _FLOAT_BYTES * args.slots
    return np.asarray(shape.layers.recurrent * each, dtype=np.int64)


def state_floats(shape: ModelShape) -> tuple[int, int]:
    """Floats of one slot in one layer: of a convolution's last tokens, and of the state."""
    heads = max(shape.heads, default=0)
    if rwkv := _number(shape, "wkv.head_size"):
        shifts = _number(shape, "token_shift_count") or _TOKEN_SHIFTS
        return shifts * shape.n_embd, rwkv * shape.n_embd
    if _number(shape, "shortconv.l_cache"):
        return shape.convolution_tokens * shape.n_embd, 0
    if head := _number(shape, "kda.head_dim"):
        kept = shape.convolution_tokens if shape.ssm_conv_kernel else 3
        return 3 * kept * heads * head, head * head * heads
    channels = shape.ssm_inner + 2 * shape.ssm_groups * shape.ssm_state
    return shape.convolution_tokens * channels, shape.ssm_state * shape.ssm_inner


def _number(shape: ModelShape, key: str) -> int:
    value = shape.key(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
