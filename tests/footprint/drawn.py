"""Shapes and arguments at random, to compare buffers with dry runs: named models and variations of them.

Files are sparse and have few layers (a compute buffer does not grow with their number) and a small
vocabulary, so that one dry run takes milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from budget.errors import ConfigError
from budget.footprint import EngineArgs
from budget.memory.arguments import check_args
from budget.memory.shape import ModelShape
from tools.shape_layouts import Shape
from tools.shapes import SHAPES

DEVICE = "RPC0"
_PER_SPLIT = 5
_LAYERS = {"gemma3": 8, "gemma4": 13, "deepseek2": 5, "gemma2": 5, "gpt-oss": 5, "glm4moe": 5}
_LAYERS |= {"lfm2": 7, "lfm2moe": 7, "smollm3": 6, "qwen35": 9, "qwen35moe": 8}
_LITE_LAYERS = 26  # llama.cpp knows deepseek2 without a compressed query by its number of layers
_CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)
_LONGEST = 1 << 20
_ENCODER_CONTEXT = 2048


def variations(architecture: str, rng: random.Random, count: int) -> Iterator[Shape]:
    """Each named model of the architecture twice, then models with other dimensions."""
    bases = [shape for shape in SHAPES.values() if shape.architecture == architecture]
    for i in range(count):
        base = bases[i % len(bases)] if i < 2 * len(bases) else rng.choice(bases)
        changed = base if i < 2 * len(bases) else _changed(base, rng)
        encoder = "bert" in architecture
        lite = architecture == "deepseek2" and "attention.q_lora_rank" not in changed.extra
        if "attention.shared_kv_layers" in changed.extra:
            shared = min(changed.extra["attention.shared_kv_layers"], 7)
            changed = replace(
                changed, extra={**changed.extra, "attention.shared_kv_layers": shared}
            )
        yield replace(
            changed,
            name=f"{architecture}-{i}",
            n_layers=_LITE_LAYERS if lite else _LAYERS.get(architecture, 4),
            n_vocab=rng.choice((4000, 16000, 64000)),
            context=_ENCODER_CONTEXT if encoder else _LONGEST,
            matrix="F16",
        )


def _changed(base: Shape, rng: random.Random) -> Shape:
    extra = dict(base.extra)
    if "attention.sliding_window" in extra:
        extra["attention.sliding_window"] = rng.choice((100, 128, 512, 1000, 1024, 4096))
    if base.architecture.startswith("mamba"):
        return _changed_mamba(base, extra, rng)
    changes = _changed_attention(base, extra, rng)
    n_embd = changes["n_embd"]
    changes["n_ff"] = _multiple(n_embd * rng.choice((0.5, 1, 1.5, 2, 2.75, 3, 3.5, 4, 5, 6, 8)), 32)
    if base.experts:
        # Groups divide the experts, and the best two of each decide.
        grouped = "expert_group_count" in extra
        changes["experts"] = rng.choice((32, 64, 128) if grouped else (4, 8, 16, 32, 60, 64, 128))
        changes["experts_used"] = rng.choice((1, 2, 3, 4, 6, 8))
        changes["experts_used"] = min(changes["experts_used"], changes["experts"])
    if base.n_ff_expert:
        scale = rng.choice((0.1, 0.2, 0.25, 0.375, 0.5, 0.6875, 1, 1.5, 3))
        changes["n_ff_expert"] = _multiple(n_embd * scale, 32)
    return replace(base, extra=extra, **changes)


def _multiple(number: float, of: int) -> int:
    return max(int(number) // of, 1) * of


def _changed_mamba(base: Shape, extra: dict[str, Any], rng: random.Random) -> Shape:
    n_embd = rng.choice((384, 512, 768, 1024, 2048, 2560, 4096))
    extra["ssm.inner_size"] = inner = 2 * n_embd
    extra["ssm.conv_kernel"] = rng.choice((3, 4, 4))
    if base.architecture == "mamba2":
        extra["ssm.inner_size"] = inner = n_embd * rng.choice((1, 2, 2, 3))
        extra["ssm.time_step_rank"] = inner // rng.choice((32, 64, 128))
        extra["ssm.group_count"] = rng.choice((1, 1, 2, 4))
        extra["ssm.state_size"] = rng.choice((32, 64, 128, 256))
    else:
        extra["ssm.time_step_rank"] = n_embd // 16
        extra["ssm.state_size"] = rng.choice((16, 16, 32))
    return replace(base, n_embd=n_embd, extra=extra)


_WIDTHS = (320, 512, 768, 1024, 1280, 1536, 2048, 2560, 3072, 3584, 4096, 5120)
# llama.cpp takes the width of their heads from that of the model.
_FIXED_HEADS = frozenset({"bert", "nomic-bert", "phi3", "qwen2", "lfm2", "lfm2moe", "smollm3"})


def _changed_attention(base: Shape, extra: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    kv_heads, group = rng.choice((1, 2, 3, 4, 5, 8, 12)), rng.choice((1, 2, 3, 4, 5, 7, 8))
    if "bert" in base.architecture:
        kv_heads, group = rng.choice((4, 6, 8, 12, 16, 32)), 1
    dims = (
        (64, 80, 96, 128) if base.architecture in _FIXED_HEADS else (32, 64, 80, 96, 128, 160, 256)
    )
    dim, heads = rng.choice(dims), kv_heads * group
    changes: dict[str, Any] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "n_embd": heads * dim,
        "head_dim": 0,
    }
    if base.architecture not in _FIXED_HEADS and (base.head_dim or rng.random() < 0.7):
        changes |= {"n_embd": rng.choice(_WIDTHS), "head_dim": dim}
        if "rope.dimension_count" in extra:
            extra["rope.dimension_count"] = dim
    if base.architecture in {"smollm3", "mistral3"}:
        extra["rope.dimension_count"] = dim
    if base.kv_pattern:
        pattern = ((0, 0, kv_heads), (0, kv_heads), (0, 0, 0, kv_heads))
        changes["kv_pattern"] = rng.choice(pattern)
    if base.architecture == "gemma4":
        changes |= _changed_gemma4(base, extra, heads, rng)
    if base.architecture.startswith("qwen35"):
        _change_delta(extra, rng)
    if base.architecture == "phi3":
        extra["rope.dimension_count"] = dim
        if rng.random() < 0.3:
            extra.pop("attention.sliding_window", None)
    if base.architecture == "deepseek2":
        changes |= {"heads": rng.choice((8, 12, 16, 32, 64, 128)), "kv_heads": 1, "head_dim": 0}
        changes["n_embd"] = rng.choice((640, 1024, 1536, 2048, 2560, 5120))
        _change_latent(extra, rng)
    if base.architecture == "falcon-h1":
        heads = rng.choice((12, 16, 24, 32, 48))
        extra["ssm.inner_size"] = heads * rng.choice((32, 64, 128))
        extra["ssm.time_step_rank"] = heads
        extra["ssm.state_size"] = rng.choice((64, 128, 256))
        extra["ssm.group_count"] = rng.choice((1, 1, 2))
    return changes


def _changed_gemma4(
    base: Shape, extra: dict[str, Any], heads: int, rng: random.Random
) -> dict[str, Any]:
    windowed, full = rng.choice(((64, 128), (128, 128), (80, 160), (256, 512)))
    extra["attention.key_length_swa"] = extra["attention.value_length_swa"] = windowed
    extra["rope.dimension_count"], extra["rope.dimension_count_swa"] = full, windowed
    few = rng.choice([n for n in (1, 2, 3, heads) if heads % n == 0])
    changes: dict[str, Any] = {"head_dim": full}
    if base.kv_pattern:
        changes["kv_pattern"] = (heads, heads, heads, heads, heads, few)
    if "attention.shared_kv_layers" in extra:
        extra["attention.shared_kv_layers"] = rng.choice((0, 7))
        extra["embedding_length_per_layer_input"] = rng.choice((0, 64, 256))
    return changes


def _change_delta(extra: dict[str, Any], rng: random.Random) -> None:
    groups, state = rng.choice((4, 8, 16)), rng.choice((64, 128))
    heads = groups * rng.choice((1, 2, 3))
    extra["ssm.group_count"], extra["ssm.state_size"] = groups, state
    extra["ssm.time_step_rank"], extra["ssm.inner_size"] = heads, heads * state
    extra["nextn_predict_layers"] = rng.choice((0, 1))


def _change_latent(extra: dict[str, Any], rng: random.Random) -> None:
    rank, rope = rng.choice((128, 256, 512, 512)), rng.choice((32, 64, 64))
    extra["attention.kv_lora_rank"] = extra["attention.value_length"] = rank
    extra["attention.key_length"] = rank + rope
    extra["attention.key_length_mla"] = rope + rng.choice((64, 96, 128))
    extra["attention.value_length_mla"] = rng.choice((64, 96, 128))
    extra["rope.dimension_count"] = rope
    extra["expert_shared_count"] = rng.choice((1, 2, 3))
    extra["leading_dense_block_count"] = rng.choice((0, 1, 1))
    if rng.random() < 0.6:
        extra["attention.q_lora_rank"] = rng.choice((384, 768, 1536))


def drawn_arguments(shape: ModelShape, endpoint: str, rng: random.Random) -> Iterator[EngineArgs]:
    """Arguments at random for every place of the split that a model has."""
    everything = shape.n_layers + 1
    for layers in sorted({0, 1, 2, 3, everything - 2, everything - 1, everything}):
        often = layers in {0, 1, 2, everything}
        for _ in range(_PER_SPLIT * (2 if often else 1)):
            args = replace(_drawn(shape, rng), n_gpu_layers=layers, rpc=(endpoint,))
            try:
                check_args(args, shape)
            except ConfigError:
                continue
            yield args


def _drawn(shape: ModelShape, rng: random.Random) -> EngineArgs:
    quantized = rng.choice(("q8_0", "q4_0"))
    flash, kinds = rng.choice(
        (
            ("on", ("f16", "f16")),
            ("on", ("f16", "f16")),
            ("on", ("f16", "f16")),
            ("on", (quantized, quantized)),
            ("on", (quantized, quantized)),
            ("on", ("f32", "f32")),
            ("off", ("f16", "f16")),
            ("off", (quantized, "f16")),
        )
    )
    encoder = not shape.causal
    context = rng.choice(_CONTEXTS)
    return EngineArgs(
        n_ctx=min(context, _ENCODER_CONTEXT) if encoder else context,
        # llama.cpp aborts on encoders whose micro-batch three slots do not divide.
        slots=rng.choice((1, 2, 4) if encoder else (1, 1, 1, 2, 3, 4, 8)),
        kv_type_k=kinds[0],
        kv_type_v=kinds[1],
        flash_attention=rng.choice(("on", "auto")) if flash == "on" else "off",
        n_ubatch=rng.choice((32, 64, 128, 256, 512, 512, 512, 1024, 2048)),
        kv_unified=rng.random() < 0.3,
        swa_full=rng.random() < 0.15,
        embeddings=encoder or rng.random() < 0.12,
        devices=(DEVICE,),
    )
