"""Compute buffers: what a full micro-batch's tensors take on each side.

Where the model's graph is known, they are what ggml's allocator reserves for it (`budget.memory.graph`),
to the byte; elsewhere a bound that is not low (`compute_bound`). The host's output buffer is a
formula (`src/llama-context.cpp`, `output_reserve`).
"""

from __future__ import annotations

from dataclasses import fields
from typing import Final
from weakref import WeakKeyDictionary

from budget.footprint import HOST, EngineArgs
from budget.memory.arguments import effective, outputs_per_slot
from budget.memory.compute_bound import bound_bytes
from budget.memory.graph import HOST as HOST_SIDE
from budget.memory.graph import PIPELINE_COPIES, graph_of, has_graph, reserved_bytes
from budget.memory.layer_table import LayerTable
from budget.memory.shape import ModelShape
from budget.memory.weights import CUDA_ALIGNMENT, HOST_ALIGNMENT, is_cuda

_FLOAT_BYTES: Final = 4
_PIPELINED: Final = ("cuda:", "RPC")
"""Devices that are known to compute in a pipeline; of others it is supposed, which is more."""


def output_rows(shape: ModelShape, args: EngineArgs) -> int:
    """Rows that the host's output buffer grows to: per slot and drafted token, or a whole batch."""
    sizes = effective(args, causal=shape.causal)
    return max(outputs_per_slot(args) * args.slots, sizes.n_batch if args.embeddings else 0)


def output_bytes(shape: ModelShape, args: EngineArgs) -> int:
    """The host's output buffer at its largest: rows of logits, and of embeddings where asked for.

    An embedding engine starts with a row per slot and grows with the longest batch it has seen; the
    rows of logits are allocated even where the model has no output layer (`output_reserve`).
    """
    width = shape.n_vocab + (shape.n_embd if args.embeddings else 0)
    return _FLOAT_BYTES * width * output_rows(shape, args)


def is_exact(shape: ModelShape, args: EngineArgs) -> bool:
    """Whether compute buffers are those of the model's graph, and no bound."""
    devices = args.layer_devices
    known = len(devices) < 2 or all(name.startswith(_PIPELINED) for name in devices)
    return known and has_graph(shape)


def is_pipeline(shape: ModelShape, args: EngineArgs) -> bool:
    """Whether devices compute in a pipeline: several of them, with every layer and the output."""
    return len(args.layer_devices) > 1 and args.n_gpu_layers > shape.n_layers


def compute_bytes(shape: ModelShape, args: EngineArgs) -> dict[str, int]:
    """Compute buffers of the host, its output buffer among them, and of each of `args.layer_devices`.

    What was evaluated is kept, for models that differ in their weights' types alone together.
    """
    key = _KEYS.get(shape.layers)
    if key is None:
        key = _KEYS[shape.layers] = _Key(shape)
    found = _KNOWN.get((key, args))
    if found is None:
        if len(_KNOWN) >= _MOST_KNOWN:
            _KNOWN.clear()
        found = _KNOWN[key, args] = _buffers(shape, args)
    host, *others = found
    names = args.layer_devices
    return {HOST: host + output_bytes(shape, args), **dict(zip(names, others, strict=True))}


def forget() -> None:
    """Evaluate graphs anew: for benchmarks."""
    _KEYS.clear()
    _KNOWN.clear()


_OTHERWISE_KEPT: Final = {"name", "tensors", "metadata", "table", "layers"}
_FIELDS: Final = [f.name for f in fields(ModelShape) if f.name not in _OTHERWISE_KEPT]


class _Key:
    """Everything of a model that its graph is built from; hashed once."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, shape: ModelShape) -> None:
        tensors = frozenset((tensor.name, tensor.dims) for tensor in shape.tensors)
        prefix = f"{shape.architecture}."
        keys = frozenset(pair for pair in shape.metadata.items() if pair[0].startswith(prefix))
        self._parts = (*(getattr(shape, name) for name in _FIELDS), tensors, keys)
        self._hash = hash(self._parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._parts == other._parts


_KEYS: Final[WeakKeyDictionary[LayerTable, _Key]] = WeakKeyDictionary()
_KNOWN: Final[dict[tuple[_Key, EngineArgs], tuple[int, ...]]] = {}
_MOST_KNOWN: Final = 4096


def _buffers(shape: ModelShape, args: EngineArgs) -> tuple[int, ...]:
    """The host's buffer, and each device's."""
    if not has_graph(shape):
        return bound_bytes(shape, args)
    alignments = {
        number: CUDA_ALIGNMENT if is_cuda(name) else HOST_ALIGNMENT
        for number, name in enumerate(args.layer_devices)
    }
    copies = PIPELINE_COPIES if is_pipeline(shape, args) else 1
    graph = graph_of(shape, args)
    found = reserved_bytes(graph, {HOST_SIDE: HOST_ALIGNMENT, **alignments}, copies)
    return found[HOST_SIDE], *(found[number] for number in alignments)
