"""Shapes and arguments to fit compute buffers to: the named models and variations of them, measured.

Files are sparse and have few layers (a compute buffer does not grow with their number) and a small
vocabulary, so that one dry run takes milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.footprint.dry_run import measure_many
from backends.gguf.header import read_header
from budget.errors import ConfigError
from budget.estimate.arguments import check_args
from budget.estimate.shape import ModelShape
from budget.footprint import HOST, EngineArgs
from tools.shape_layouts import Shape
from tools.shapes import SHAPES, write

DEVICE = "RPC0"
_VARIATIONS = 22
_PER_SPLIT = 5
_LAYERS = {"gemma3": 8, "deepseek2": 5, "gemma2": 5, "gpt-oss": 5}
_LITE_LAYERS = 26  # llama.cpp knows deepseek2 without a compressed query by its number of layers
_CONTEXTS = (512, 1024, 2048, 4096, 8192, 32768)
_LONGEST = 1 << 20
_ENCODER_CONTEXT = 2048


@dataclass(frozen=True)
class Sample:
    """One dry run: compute buffers of both sides, in bytes. `named` for a published model's dims."""

    shape: ModelShape
    args: EngineArgs
    host_bytes: int
    device_bytes: int
    named: bool


def samples(architecture: str, folder: Path, endpoint: str, seed: int = 1) -> Iterator[Sample]:
    """Measure an architecture on an RPC device, at every place of the split."""
    rng = random.Random(seed)
    named = 2 * sum(shape.architecture == architecture for shape in SHAPES.values())
    for number, shape in enumerate(variations(architecture, rng, _VARIATIONS + named // 2)):
        path = write(shape, folder)
        read = read_header(path).shape()
        many = list(_arguments(read, endpoint, rng))
        for args, run in zip(many, measure_many(path, many, timeout_s=300), strict=True):
            if run is not None:
                bytes_of = {HOST: 0, DEVICE: 0}
                for row in run.buffers:
                    bytes_of[row.device] += row.compute_bytes
                yield Sample(read, args, bytes_of[HOST], bytes_of[DEVICE], number < named)
        path.unlink()


def variations(architecture: str, rng: random.Random, count: int) -> Iterator[Shape]:
    """Each named model of the architecture twice, then models with other dimensions."""
    bases = [shape for shape in SHAPES.values() if shape.architecture == architecture]
    for i in range(count):
        base = bases[i % len(bases)] if i < 2 * len(bases) else rng.choice(bases)
        changed = base if i < 2 * len(bases) else _changed(base, rng)
        encoder = "bert" in architecture
        lite = architecture == "deepseek2" and "attention.q_lora_rank" not in changed.extra
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
        extra["attention.sliding_window"] = rng.choice((128, 512, 1024, 4096))
    if base.architecture.startswith("mamba"):
        return _changed_mamba(base, extra, rng)
    changes = _changed_attention(base, extra, rng)
    n_embd = changes["n_embd"]
    changes["n_ff"] = (
        int(n_embd * rng.choice((1, 1.5, 2, 2.5, 2.75, 3, 3.5, 4, 5, 6, 8))) // 64 * 64
    )
    if base.experts:
        changes["experts"] = rng.choice((8, 16, 32, 64, 128))
        changes["experts_used"] = rng.choice((2, 4, 6, 8))
    if base.n_ff_expert:
        scale = rng.choice((0.25, 0.375, 0.5, 0.6875, 1, 1.5))
        changes["n_ff_expert"] = int(n_embd * scale) // 64 * 64
    return replace(base, extra=extra, **changes)


def _changed_mamba(base: Shape, extra: dict[str, Any], rng: random.Random) -> Shape:
    n_embd = rng.choice((512, 768, 1024, 2048, 2560))
    extra["ssm.inner_size"] = 2 * n_embd
    mamba2 = base.architecture == "mamba2"
    extra["ssm.time_step_rank"] = n_embd // (32 if mamba2 else 16)
    extra["ssm.state_size"] = rng.choice((64, 128, 256) if mamba2 else (16, 16, 32))
    return replace(base, n_embd=n_embd, extra=extra)


def _changed_attention(base: Shape, extra: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    kv_heads, group = rng.choice((1, 2, 4, 8)), rng.choice((1, 2, 4, 8))
    if base.architecture in {"phi3", "bert", "nomic-bert"}:
        kv_heads = rng.choice((4, 8, 12, 16, 32))
        group = rng.choice((1, 1, 4)) if base.architecture == "phi3" else 1
    widths = (512, 1024, 1536, 2048, 2560, 3584, 4096, 5120)
    n_embd = rng.choice(widths) if base.head_dim else kv_heads * group * base.dim
    if base.architecture == "deepseek2":
        kv_heads, group, n_embd = 1, rng.choice((8, 16, 32, 64)), rng.choice((1024, 2048, 5120))
        extra["expert_shared_count"] = rng.choice((1, 2))
        if rng.random() < 0.6:
            extra["attention.q_lora_rank"] = rng.choice((768, 1536))
    if base.architecture == "falcon-h1":
        heads = rng.choice((16, 24, 32, 48))
        extra["ssm.inner_size"] = heads * rng.choice((32, 64, 128))
        extra["ssm.time_step_rank"] = heads
        extra["ssm.state_size"] = rng.choice((64, 128, 256))
    return {"heads": kv_heads * group, "kv_heads": kv_heads, "n_embd": n_embd}


def _arguments(shape: ModelShape, endpoint: str, rng: random.Random) -> Iterator[EngineArgs]:
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
            ("on", (quantized, quantized)),
            ("off", ("f16", "f16")),
            ("off", (quantized, "f16")),
        )
    )
    encoder = not shape.causal
    context = rng.choice(_CONTEXTS)
    return EngineArgs(
        n_ctx=min(context, _ENCODER_CONTEXT) if encoder else context,
        slots=rng.choice((1, 1, 2, 4)),
        kv_type_k=kinds[0],
        kv_type_v=kinds[1],
        flash_attention="on" if flash == "on" else "off",
        n_ubatch=rng.choice((64, 128, 512, 512, 512, 1024)),
        kv_unified=rng.random() < 0.3,
        swa_full=rng.random() < 0.15,
        embeddings=encoder or rng.random() < 0.12,
        devices=(DEVICE,),
    )
