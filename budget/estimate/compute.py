"""The compute buffer: the peak of the graph's live tensors for one full micro-batch.

Sources: llama.cpp `src/llama-graph.cpp` and `src/models/*.cpp` (the tensors), `ggml/src/ggml-alloc.c`
(what may overlap), `src/llama-context.cpp` (`sched_reserve`, `output_reserve`).
"""

from __future__ import annotations

from dataclasses import dataclass

from budget.estimate.architectures import Architecture, architecture
from budget.estimate.arguments import Effective, effective, pad
from budget.estimate.shape import GGML_TYPES, ModelShape
from budget.footprint import EngineArgs

_FLOAT_BYTES = 4
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class ComputeParts:
    """The parts of the reservation, in bytes; a side that computes layers needs all but `embedding`.

    `inputs` and `mask` are the graph's inputs, `layers` the peak within a layer, `output` the rows of
    logits, `embedding` the activations that cross from the host to a device.
    """

    inputs: int
    mask: int
    layers: int
    output: int
    embedding: int

    @property
    def total(self) -> int:
        """The reservation of a side that computes layers and the output."""
        return self.inputs + max(self.mask + self.layers, self.output)


def output_rows(shape: ModelShape, args: EngineArgs) -> int:
    """Rows that the host's output buffer grows to: one per slot, or a whole batch of embeddings."""
    sizes = effective(args, causal=shape.causal)
    return max(args.slots, sizes.n_batch if args.embeddings else 0)


def output_bytes(shape: ModelShape, args: EngineArgs) -> int:
    """The host's output buffer at its largest: rows of logits, and of embeddings where asked for.

    An embedding engine starts with a row per slot and grows with the longest batch it has seen; the
    rows of logits are allocated even where the model has no output layer (`output_reserve`).
    """
    width = shape.n_vocab + (shape.n_embd if args.embeddings else 0)
    return _FLOAT_BYTES * width * output_rows(shape, args)


def compute_parts(shape: ModelShape, args: EngineArgs) -> ComputeParts:
    """The parts of the compute buffer for these arguments.

    Raises:
        MeasurementFailed: the architecture is not known.
    """
    known = architecture(shape.architecture)
    sizes = effective(args, causal=shape.causal)
    tokens = pad(sizes.n_tokens, args.slots)
    flash = args.flash_attention != "off"
    embd, q = shape.n_embd, _q_width(shape)
    attention = known.attn_embd * embd + known.attn_q * q
    if not flash:
        attention += max(shape.heads) * sizes.n_ctx_seq
    rotated = _rotates(args)
    per_token = max(_feed_forward(shape, known, rotated=rotated), attention)
    rows = sizes.n_outputs
    return ComputeParts(
        inputs=_inputs(shape, sizes, tokens, flash=flash) + (_rotations(shape) if rotated else 0),
        mask=sizes.n_ctx_seq * tokens * (2 if flash else 4),
        layers=_FLOAT_BYTES * tokens * per_token,
        output=_FLOAT_BYTES * rows * (shape.n_vocab + 2 * embd),
        embedding=_FLOAT_BYTES * tokens * embd,
    )


def _q_width(shape: ModelShape) -> int:
    return max(n * d for n, d in zip(shape.heads, shape.head_dim_k, strict=True))


def _rotates(args: EngineArgs) -> bool:
    """Whether a quantized cache is stored rotated (`src/llama-kv-cache.cpp`, `attn_rot_k`)."""
    return any(GGML_TYPES[kind.upper()][0] > 1 for kind in (args.kv_type_k, args.kv_type_v))


def _rotations(shape: ModelShape) -> int:
    """The rotation matrices: the largest power of two in a key head, and 64 for values."""
    head = max(shape.head_dim_k)
    return _FLOAT_BYTES * ((head & -head) ** 2 + 64**2)


def _feed_forward(shape: ModelShape, known: Architecture, *, rotated: bool) -> int:
    """Floats per token at the feed-forward peak, of the widest layer."""
    embd, q = shape.n_embd, _q_width(shape)
    base = known.ffn_embd * embd
    if rotated and q == embd:
        base -= embd
    if not shape.n_experts:
        return base + known.ffn_ff * max(shape.n_ff)
    rows = shape.n_experts_used * max(shape.n_ff_expert)
    outputs = shape.n_experts_used * embd
    experts = base + known.ffn_ff * rows + max(q - embd, 0)
    # The experts' outputs go where gate and up were, if they fit there.
    if outputs > 2 * rows:
        experts += outputs
    dense = max(shape.n_ff[: shape.n_layers_dense_lead], default=0)
    return max(experts, base + known.ffn_ff * dense if dense else 0)


def _inputs(shape: ModelShape, sizes: Effective, tokens: int, *, flash: bool) -> int:
    """Token ids, positions, cache indices of keys and values, rows of the output."""
    ids = 2 * pad(4 * tokens, _ALIGNMENT) + pad(8 * tokens, _ALIGNMENT)
    widths = [n * d for n, d in zip(shape.kv_heads, shape.head_dim_v, strict=True)]
    # Without flash attention the values are stored transposed: an index for every element.
    values = 8 * tokens * (1 if flash else max(widths, default=0))
    return ids + pad(values, _ALIGNMENT) + pad(4 * sizes.n_outputs, _ALIGNMENT)
