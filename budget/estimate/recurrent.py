"""Recurrent state, layer by layer: F32, one state per slot, whatever the context.

Source: llama.cpp `src/llama-memory-recurrent.cpp`; sizes of `src/llama-hparams.cpp` (`n_embd_r`,
`n_embd_s`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budget.estimate.shape import ModelShape
from budget.footprint import EngineArgs

_FLOAT_BYTES = 4


def recurrent_by_layer(shape: ModelShape, args: EngineArgs) -> NDArray[np.int64]:
    """Bytes of recurrent state of each layer: (convolution + state-space) floats x slots."""
    convolution = max(shape.ssm_conv_kernel - 1, 0) * (
        shape.ssm_inner + 2 * shape.ssm_groups * shape.ssm_state
    )
    state = shape.ssm_state * shape.ssm_inner
    each = (convolution + state) * _FLOAT_BYTES * args.slots
    return np.asarray(shape.layers.recurrent * each, dtype=np.int64)
