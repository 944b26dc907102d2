"""Files beside a model: a multimodal projector, LoRA adapters, a draft model's arguments.

Sources: llama.cpp `tools/mtmd/clip.cpp` (projector), `src/llama-adapter.cpp` (adapters),
`common/speculative.cpp`, `common_base_params_to_speculative` (draft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from budget.estimate.arguments import effective, pad
from budget.estimate.shape import GGML_TYPES, ModelShape
from budget.estimate.tensor_table import INPUT, Tensor, tensor_table
from budget.estimate.weights import HOST_ALIGNMENT, device_tensor_bytes
from budget.footprint import EngineArgs, Footprint

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tower:
    """The vision tower of a projector whose images have one size."""

    image_size: int
    patch_size: int
    n_embd: int
    n_ff: int
    heads: int

    def compute_bytes(self, *, flash: bool) -> int:
        """An upper bound of its compute buffer for one image.

        Per patch: one feed-forward row, seven rows of activations (four to six were measured), and
        without flash attention a score per head and patch.
        """
        patches = (self.image_size // self.patch_size) ** 2
        scores = 0 if flash else self.heads * patches
        return _FLOAT_BYTES * patches * (max(self.n_ff, scores) + 7 * self.n_embd)


def draft_args(args: EngineArgs, n_layers: int) -> EngineArgs:
    """What llama-server gives to a draft model of that many layers.

    The target's context, batches and slots, an F16 cache, and all layers on the devices, if any.
    """
    on_device = any(name != "host" for name in args.devices)
    return replace(
        args,
        kv_type_k="f16",
        kv_type_v="f16",
        n_gpu_layers=n_layers + 1 if on_device else 0,
        embeddings=False,
        mmproj=None,
        draft_model=None,
        lora=(),
    )


def adapter_footprints(
    tensors: Sequence[Tensor], shape: ModelShape, args: EngineArgs, device: str
) -> tuple[Footprint, Footprint]:
    """What a LoRA adapter adds on the host and on the device.

    Its tensors lie where the matrices that they adapt do. Each adapted product has one more result
    alive (`build_lora_mm`): the widest of them is booked as compute, an upper bound.
    """
    table = tensor_table(tensors, shape.n_layers, GGML_TYPES)
    # Layers from n_layers + 1 - n_gpu_layers on, and the output, are on the device.
    first = max(shape.n_layers + 1 - args.n_gpu_layers, 0)
    moved = (table.layer >= first) & (table.layer != INPUT)
    on_host = -(-table.n_bytes // HOST_ALIGNMENT) * HOST_ALIGNMENT
    on_device = device_tensor_bytes(table, device)
    tokens = pad(effective(args, causal=shape.causal).n_tokens, args.slots)
    widths = np.array([tensor.dims[1] if len(tensor.dims) > 1 else 0 for tensor in tensors])
    found = []
    for sizes, here in ((on_host, ~moved), (on_device, moved)):
        widest = int(widths[here].max(initial=0))
        found.append(Footprint(int(sizes[here].sum()), 0, _FLOAT_BYTES * tokens * widest))
    return found[0], found[1]
