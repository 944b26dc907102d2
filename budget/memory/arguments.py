"""What engine arguments are possible at all, and what llama.cpp makes of them.

Checked before anything is started; `effective` gives the figures after llama.cpp's own rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from budget.errors import ConfigError
from budget.footprint import EngineArgs
from budget.memory.further.option_values import trained_context
from budget.memory.further.speculation import check_speculation, drafted_tokens
from budget.memory.shape import GGML_TYPES, ModelShape

KV_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
"""What `--cache-type-k` and `-v` allow (common/arg.cpp, `kv_cache_types`)."""

_CONTEXT_PAD: Final = 256
_MAX_SLOTS: Final = 256  # LLAMA_MAX_SEQ


def pad(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple, as `GGML_PAD` does."""
    return -(-value // multiple) * multiple


def _reject(what: str, found: object, allowed: str, hint: str = "") -> ConfigError:
    return ConfigError(
        f"{what} is {found}; {allowed}.",
        hint=hint,
        argument=what,
        found=str(found),
        allowed=allowed,
    )


def check_args(args: EngineArgs, shape: ModelShape | None = None) -> None:
    """Refuse arguments that llama.cpp cannot honour, with what is allowed.

    Raises:
        ConfigError: a count is out of range, a KV type is not known or does not divide the heads
            of `shape`, the V cache is quantized without flash attention, the context is longer than
            the model's, or more layers are asked for than there are.
    """
    _check_counts(args)
    for name, kind in (("kv_type_k", args.kv_type_k), ("kv_type_v", args.kv_type_v)):
        if kind not in KV_TYPES:
            raise _reject(name, repr(kind), f"allowed are {', '.join(KV_TYPES)}")
    if args.flash_attention == "off" and GGML_TYPES[args.kv_type_v.upper()][0] > 1:
        raise _reject(
            "kv_type_v",
            repr(args.kv_type_v),
            "without flash attention it can be f32, f16 or bf16",
            hint="Set flash_attention to on or auto.",
        )
    if shape is not None:
        _check_shape(args, shape)


def _check_counts(args: EngineArgs) -> None:
    for name, value, most in (
        ("n_ctx", args.n_ctx, 1 << 31),
        ("slots", args.slots, _MAX_SLOTS),
        ("n_batch", args.n_batch, 1 << 31),
        ("n_ubatch", args.n_ubatch, 1 << 31),
    ):
        if not 1 <= value <= most:
            raise _reject(name, value, f"1 to {most} are allowed")
    if args.context_per_slot < 1:
        raise _reject("n_ctx", args.n_ctx, f"it must hold a token for each of {args.slots} slots")
    if args.n_gpu_layers < 0:
        raise _reject("n_gpu_layers", args.n_gpu_layers, "0 or more layers are allowed")
    _check_split(args)


def _check_split(args: EngineArgs) -> None:
    """Devices named once each, and a share for each of several: free memory decides nothing."""
    names, split = args.layer_devices, args.tensor_split
    if len(set(names)) < len(names):
        raise _reject("devices", ", ".join(names), "each may be named once")
    if len(names) < 2 and not split:
        return
    if len(split) != len(names) or min(split) < 0 or not any(split):
        raise _reject(
            "tensor_split",
            ",".join(map(str, split)) or "not given",
            f"a number of layers for each of {', '.join(names) or 'no devices'} is needed",
            hint="Layers are counted with the output; 0 or more on each device.",
        )


def _check_shape(args: EngineArgs, shape: ModelShape) -> None:
    trained = trained_context(args.extra, shape)
    if trained and args.context_per_slot > trained:
        raise _reject(
            "context",
            args.context_per_slot,
            f"the model was trained for {trained} tokens",
            hint=f"Set the context (per slot) to at most {trained}.",
        )
    check_speculation(args, shape)
    if args.n_gpu_layers > shape.n_layers + 1:
        raise _reject(
            "n_gpu_layers",
            args.n_gpu_layers,
            f"0 to {shape.n_layers + 1} are allowed ({shape.n_layers} layers and the output)",
        )
    if shape.is_mla and args.kv_type_k != args.kv_type_v:
        raise _reject(
            "kv_type_v",
            repr(args.kv_type_v),
            f"with latent attention it must be that of the keys, {args.kv_type_k!r}",
        )
    for name, kind, dims in (
        ("kv_type_k", args.kv_type_k, shape.head_dim_k),
        ("kv_type_v", args.kv_type_v, shape.head_dim_v),
    ):
        block = GGML_TYPES[kind.upper()][0]
        if not shape.is_mla and any(dim % block for dim in set(dims)):
            raise _reject(
                name,
                repr(kind),
                f"its blocks of {block} do not divide the model's heads of {max(dims)}",
                hint="Use f16.",
            )


@dataclass(frozen=True, slots=True)
class Effective:
    """The sizes that llama.cpp works with (`src/llama-context.cpp`, the constructor).

    `n_ctx` counts all slots, `n_ctx_seq` the cells of one stream; there are `n_streams` streams.
    """

    n_ctx: int
    n_ctx_seq: int
    n_streams: int
    n_batch: int
    n_ubatch: int
    n_tokens: int
    n_outputs: int


def outputs_per_slot(args: EngineArgs) -> int:
    """Rows of logits that a slot needs at once: one, and one for each drafted token."""
    return 1 + drafted_tokens(args)


@lru_cache(maxsize=1024)
def effective(args: EngineArgs, *, causal: bool = True) -> Effective:
    """The sizes after padding: contexts to 256 cells, batches to the context when causal.

    `n_tokens` is the micro-batch that the compute buffer is reserved for, `n_outputs` its rows of
    logits: one per slot and drafted token, or the whole batch for embeddings
    (`tools/server/server-context.cpp`, `server_output_limits`).
    """
    n_batch = min(args.n_batch, args.n_ubatch) if args.embeddings else args.n_batch
    outputs = n_batch if args.embeddings else min(n_batch, args.slots * outputs_per_slot(args))
    if causal:
        n_batch = min(args.n_ctx, n_batch)
    n_ubatch = min(n_batch, args.n_ubatch)
    n_ctx = pad(args.n_ctx, _CONTEXT_PAD)
    streams = 1 if args.kv_unified else args.slots
    n_ctx_seq = n_ctx if args.kv_unified else pad(n_ctx // args.slots, _CONTEXT_PAD)
    n_ctx = n_ctx_seq * streams
    n_tokens = min(n_ctx, n_ubatch)
    return Effective(n_ctx, n_ctx_seq, streams, n_batch, n_ubatch, n_tokens, min(n_tokens, outputs))
