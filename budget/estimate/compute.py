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
    """The parts of the reservations, in bytes.

    `tokens` are the token ids (on the side of the embedding), `inputs` all other small inputs,
    `mask` the attention mask, `layers` the peak within a layer, `last_layer` that within the last
    one (whose feed-forward sees the output rows only), `output` the rows of logits, `embedding` the
    activations of one micro-batch. `narrow` is whether queries are as wide as activations.
    """

    tokens: int
    inputs: int
    mask: int
    layers: int
    last_layer: int
    output: int
    hidden: int
    embedding: int
    narrow: bool

    @property
    def host_all(self) -> int:
        """The host's buffer while it computes a layer, or everything."""
        return self.tokens + self.inputs + max(self.mask + self.layers, self.output + self.hidden)

    @property
    def host_none(self) -> int:
        """The host's buffer when it only looks up the embedding."""
        return self.tokens + self.inputs + self.mask + 2 * self.embedding

    @property
    def device_all(self) -> int:
        """A device's buffer with every layer; a wide query hides the embedding's arrival."""
        arriving = self.embedding if self.narrow else 0
        return self.inputs + max(self.mask + self.layers - arriving, self.output)

    @property
    def device_some(self) -> int:
        """A device's buffer with some of the layers and the output."""
        return self.inputs + max(self.mask + self.layers - 2 * self.embedding, self.output)

    @property
    def device_last(self) -> int:
        """A device's buffer with the last layer and the output."""
        return self.inputs + max(self.mask + self.last_layer, self.output)


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
    flash_peak = known.flash_embd * embd + known.flash_q * q
    score_peak = known.attn_embd * embd + known.attn_q * q + max(shape.heads) * sizes.n_ctx_seq
    attention = flash_peak if flash else score_peak
    rotated = _rotates(args)
    per_token = max(_feed_forward(shape, known, rotated=rotated), attention)
    rows = sizes.n_outputs
    return ComputeParts(
        tokens=pad(4 * tokens, _ALIGNMENT),
        inputs=_inputs(shape, sizes, tokens, flash=flash) + (_rotations(shape) if rotated else 0),
        mask=sizes.n_ctx_seq * tokens * (2 if flash else 4),
        layers=_FLOAT_BYTES * tokens * per_token,
        last_layer=_FLOAT_BYTES * tokens * attention,
        output=_FLOAT_BYTES * rows * (shape.n_vocab + embd),
        hidden=_FLOAT_BYTES * rows * embd,
        embedding=_FLOAT_BYTES * tokens * embd,
        narrow=q == embd,
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
    """Positions, cache indices of keys and values, rows of the output."""
    ids = pad(4 * tokens, _ALIGNMENT) + pad(8 * tokens, _ALIGNMENT)
    widths = [n * d for n, d in zip(shape.kv_heads, shape.head_dim_v, strict=True)]
    # Without flash attention the values are stored transposed: an index for every element.
    values = 8 * tokens * (1 if flash else max(widths, default=0))
    return ids + pad(values, _ALIGNMENT) + pad(4 * sizes.n_outputs, _ALIGNMENT)
