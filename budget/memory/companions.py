"""Files beside a model: a multimodal projector, LoRA adapters, a draft model's arguments.

Sources: llama.cpp `tools/mtmd/clip.cpp` (projector), `src/llama-adapter.cpp` (adapters),
`common/speculative.cpp`, `common_base_params_to_speculative` (draft).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from budget.footprint import HOST, EngineArgs, Footprint
from budget.memory.further.option_values import last_value
from budget.memory.shape import GGML_TYPES, ModelShape
from budget.memory.split import ON_HOST, device_of_layers
from budget.memory.tensor_table import Tensor, tensor_table
from budget.memory.weights import HOST_ALIGNMENT, device_tensor_bytes

_FLOAT_BYTES = 4
_DRAFT_KEYS = ("--spec-draft-type-k", "-ctkd", "--cache-type-k-draft")
_DRAFT_VALUES = ("--spec-draft-type-v", "-ctvd", "--cache-type-v-draft")


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

    The target's context, batches and slots, an F16 cache unless an option says otherwise, and all layers on
    the devices, if any.
    """
    on_device = any(name != "host" for name in args.devices)
    return replace(
        args,
        kv_type_k=last_value(args.extra, *_DRAFT_KEYS) or "f16",
        kv_type_v=last_value(args.extra, *_DRAFT_VALUES) or "f16",
        n_gpu_layers=n_layers + 1 if on_device else 0,
        embeddings=False,
        mmproj=None,
        draft_model=None,
        lora=(),
        extra=(),
    )


def adapter_footprints(
    tensors: Sequence[Tensor], shape: ModelShape, args: EngineArgs
) -> dict[str, Footprint]:
    """What a LoRA adapter adds on the host and on each device.

    Its tensors lie where the matrices that they adapt do. The compute buffer does not grow: what an
    adapted product adds is gone before the feed-forward's peak (seen in a real engine's log).
    """
    table = tensor_table(tensors, shape.n_layers, GGML_TYPES)
    places = device_of_layers(args.tensor_split, args.n_gpu_layers, shape.n_layers)
    # What is no layer's is an input's, which stays on the host.
    place = np.where(table.layer >= 0, places[np.maximum(table.layer, 0)], ON_HOST)
    on_host = -(-table.n_bytes // HOST_ALIGNMENT) * HOST_ALIGNMENT
    found = {HOST: Footprint(int(on_host[place == ON_HOST].sum()))}
    for number, device in enumerate(args.layer_devices):
        there = device_tensor_bytes(table, device)
        found[device] = Footprint(int(there[place == number].sum()))
    return found
