"""What an engine's process takes beyond the buffers that llama.cpp reports.

Measured, not derived: a base (heap, stacks, relocated data, the graphs' metadata), the vocabulary
by token and by merge, the CPU backend's work buffer, and a share of the code that all engines of
one build map together. `docs/accuracy.md` says how each was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from budget.estimate.arguments import effective
from budget.estimate.shape import ModelShape
from budget.footprint import EngineArgs

_WORK_BYTES_PER_ELEMENT: Final = 2.0


@dataclass(frozen=True, slots=True)
class OverheadModel:
    """The measured coefficients, in bytes.

    `base_bytes` is private memory of any llama-server; `code_bytes` the share of its code and
    libraries that one engine is charged (the keeper maps them too, so that PSS divides by at least
    two); `token_bytes` and `merge_bytes` the vocabulary's heap; `layer_bytes` the graph's and the
    tensors' metadata; `slot_bytes` a slot's own state; `device_bytes` the context of one GPU.
    """

    base_bytes: int = 3_400_000
    code_bytes: int = 6_000_000
    token_bytes: int = 165
    merge_bytes: int = 120
    layer_bytes: int = 40_000
    slot_bytes: int = 300_000
    device_bytes: int = 512 << 20


DEFAULT_OVERHEAD: Final = OverheadModel()
"""Measured with llama.cpp of llama-cpp-python 0.3.36 on Linux x86-64, `MALLOC_ARENA_MAX=1`."""


def work_bytes(shape: ModelShape, args: EngineArgs) -> int:
    """The CPU backend's work buffer, which no line of the log reports.

    The activations of the widest matrix product, converted to the type that the weights are
    multiplied in (ggml/src/ggml-cpu/ggml-cpu.c, `ggml_graph_plan`).
    """
    sizes = effective(args, causal=shape.causal)
    return int(sizes.n_tokens * max(*shape.n_ff, shape.n_embd) * _WORK_BYTES_PER_ELEMENT)


def engine_overhead_bytes(
    shape: ModelShape,
    args: EngineArgs,
    *,
    n_merges: int = 0,
    model: OverheadModel = DEFAULT_OVERHEAD,
) -> int:
    """Bytes that an engine's process takes on the host beyond its reported buffers.

    `n_merges` is the length of the tokenizer's merge table, 0 without one.
    """
    return (
        model.base_bytes
        + model.code_bytes
        + model.token_bytes * shape.n_vocab
        + model.merge_bytes * n_merges
        + model.layer_bytes * shape.n_layers
        + model.slot_bytes * args.slots
        + work_bytes(shape, args)
    )
