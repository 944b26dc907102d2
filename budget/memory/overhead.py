"""What an engine's process takes beyond the buffers that llama.cpp reports.

Measured, not derived: a base (heap, stacks, relocated data, work buffers), the graph's metadata by
layer, the vocabulary by token and by merge, the samplers by slot, and a share of the code that all
engines of one build map together. `docs/accuracy.md` says how each was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from budget.footprint import EngineArgs
from budget.memory.shape import ModelShape

_MIB: Final = 1 << 20
PYTHON_BYTES: Final = 16 * _MIB
"""What a worker over llama-cpp-python takes beyond a llama-server: the interpreter and its modules."""


@dataclass(frozen=True, slots=True)
class OverheadModel:
    """The measured coefficients, in bytes.

    `base_bytes` is private memory of any llama-server; `code_bytes` the share of its code and
    libraries that one engine is charged (PSS divides them among the engines and the keeper, which
    maps them too); `layer_bytes` the graph's and the tensors' metadata; `token_bytes` the
    vocabulary's heap; `bpe_bytes` and `merge_bytes` the merge table and its pre-tokenizer;
    `candidate_bytes` and `slot_bytes` what each slot's sampler holds; `device_bytes` the context of
    one GPU.
    """

    base_bytes: int = 5 * _MIB
    code_bytes: int = 6 * _MIB
    layer_bytes: int = 100_000
    token_bytes: int = 133
    bpe_bytes: int = 2_200_000
    merge_bytes: int = 133
    candidate_bytes: int = 12
    slot_bytes: int = 100_000
    device_bytes: int = 512 * _MIB


DEFAULT_OVERHEAD: Final = OverheadModel()
"""Measured on Linux x86-64 with the llama.cpp of llama-cpp-python 0.3.36; `device_bytes` is not."""


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
    vocabulary = model.token_bytes * shape.n_vocab
    if n_merges:
        vocabulary += model.bpe_bytes + model.merge_bytes * n_merges
    slots = args.slots * (model.slot_bytes + model.candidate_bytes * shape.n_vocab)
    layers = model.layer_bytes * shape.n_layers
    python = PYTHON_BYTES if args.binding else 0
    return python + model.base_bytes + model.code_bytes + layers + vocabulary + slots
