"""Sparse GGUF files of real models' shapes: header and tensor table, no weights.

A file has its full apparent size and some 100 KB on disk, so that footprints of any model can be
measured and computed without downloading it: `python tools/shapes.py FOLDER [NAME ...]`.
Dimensions are those of the published models; weights read as zeros.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensor = tuple[str, tuple[int, ...], str]
_ALIGNMENT = 32


@dataclass(frozen=True)
class Shape:
    """The numbers of one model; `extra` are further keys without the architecture's prefix."""

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    n_vocab: int
    n_ff: int
    heads: int
    kv_heads: int
    head_dim: int = 0
    context: int = 32768
    tied: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    experts: int = 0
    experts_used: int = 0
    n_ff_expert: int = 0
    matrix: str = "F16"
    extra: Mapping[str, Any] = field(default_factory=dict)
    tensors: Callable[[Shape], Iterator[Tensor]] | None = None

    @property
    def dim(self) -> int:
        """Elements of one attention head."""
        return self.head_dim or self.n_embd // self.heads


def attention(s: Shape, layer: str) -> Iterator[Tensor]:
    """Plain (grouped-query) attention with separate matrices."""
    q, kv = s.heads * s.dim, s.kv_heads * s.dim
    yield f"{layer}.attn_norm.weight", (s.n_embd,), "F32"
    for part, rows in (("q", q), ("k", kv), ("v", kv)):
        yield f"{layer}.attn_{part}.weight", (s.n_embd, rows), s.matrix
        if s.qkv_bias:
            yield f"{layer}.attn_{part}.bias", (rows,), "F32"
    yield f"{layer}.attn_output.weight", (q, s.n_embd), s.matrix
    if s.qk_norm:
        yield f"{layer}.attn_q_norm.weight", (s.dim,), "F32"
        yield f"{layer}.attn_k_norm.weight", (s.dim,), "F32"


def feed_forward(s: Shape, layer: str) -> Iterator[Tensor]:
    """A gated feed-forward block."""
    yield f"{layer}.ffn_norm.weight", (s.n_embd,), "F32"
    yield f"{layer}.ffn_gate.weight", (s.n_embd, s.n_ff), s.matrix
    yield f"{layer}.ffn_up.weight", (s.n_embd, s.n_ff), s.matrix
    yield f"{layer}.ffn_down.weight", (s.n_ff, s.n_embd), s.matrix


def expert_feed_forward(s: Shape, layer: str) -> Iterator[Tensor]:
    """A router and its experts."""
    ff = s.n_ff_expert or s.n_ff
    yield f"{layer}.ffn_norm.weight", (s.n_embd,), "F32"
    yield f"{layer}.ffn_gate_inp.weight", (s.n_embd, s.experts), "F32"
    yield f"{layer}.ffn_gate_exps.weight", (s.n_embd, ff, s.experts), s.matrix
    yield f"{layer}.ffn_up_exps.weight", (s.n_embd, ff, s.experts), s.matrix
    yield f"{layer}.ffn_down_exps.weight", (ff, s.n_embd, s.experts), s.matrix


def llama_like(s: Shape) -> Iterator[Tensor]:
    """Embedding, layers of attention and feed-forward, output."""
    yield "token_embd.weight", (s.n_embd, s.n_vocab), s.matrix
    for i in range(s.n_layers):
        yield from attention(s, f"blk.{i}")
        block = expert_feed_forward if s.experts else feed_forward
        yield from block(s, f"blk.{i}")
    yield "output_norm.weight", (s.n_embd,), "F32"
    if not s.tied:
        yield "output.weight", (s.n_embd, s.n_vocab), s.matrix


SHAPES: dict[str, Shape] = {
    s.name: s
    for s in (
        Shape("smollm2-135m", "llama", 30, 576, 49152, 1536, 9, 3, tied=True, context=8192),
        Shape("tinyllama-1.1b", "llama", 22, 2048, 32000, 5632, 32, 4, context=2048),
        Shape("llama-2-7b", "llama", 32, 4096, 32000, 11008, 32, 32, context=4096),
        Shape("llama-3.1-8b", "llama", 32, 4096, 128256, 14336, 32, 8, context=131072),
        Shape("llama-3.1-70b", "llama", 80, 8192, 128256, 28672, 64, 8, context=131072),
        Shape("qwen2.5-0.5b", "qwen2", 24, 896, 151936, 4864, 14, 2, tied=True, qkv_bias=True),
        Shape("qwen2.5-7b", "qwen2", 28, 3584, 152064, 18944, 28, 4, qkv_bias=True),
        Shape("qwen3-0.6b", "qwen3", 28, 1024, 151936, 3072, 16, 8, 128, tied=True, qk_norm=True),
        Shape("qwen3-8b", "qwen3", 36, 4096, 151936, 12288, 32, 8, 128, qk_norm=True),
        Shape("mixtral-8x7b", "llama", 32, 4096, 32000, 14336, 32, 8, experts=8, experts_used=2),
        Shape(
            "qwen3-30b-a3b",
            "qwen3moe",
            48,
            2048,
            151936,
            6144,
            32,
            4,
            128,
            qk_norm=True,
            experts=128,
            experts_used=8,
            n_ff_expert=768,
        ),
    )
}


def quantized(shape: Shape, matrix: str) -> Shape:
    """The same model with another tensor type for its matrices."""
    return replace(shape, name=f"{shape.name}-{matrix.lower()}", matrix=matrix)


def write(shape: Shape, folder: Path) -> Path:
    """Write the sparse file; returns its path."""
    path = folder / f"{shape.name}.gguf"
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    _add_keys(writer, shape)
    _add_vocabulary(writer)
    data_bytes = 0
    for name, dims, kind in (shape.tensors or llama_like)(shape):
        quantization = gguf.GGMLQuantizationType[kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        n_bytes = int(np.prod(dims, dtype=np.int64)) // block * block_bytes
        _add_tensor(writer, name, dims, n_bytes, quantization)
        data_bytes += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(-(-header_bytes // _ALIGNMENT) * _ALIGNMENT + data_bytes)
    return path


def _add_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    dims: tuple[int, ...],
    n_bytes: int,
    kind: gguf.GGMLQuantizationType,
) -> None:
    # The writer wants numpy's order, and for a raw type the shape in bytes.
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows = tuple(reversed(dims))
    as_bytes = (*rows[:-1], rows[-1] // block * block_bytes)
    writer.add_tensor_info(name, as_bytes, np.dtype(np.uint8), n_bytes, raw_dtype=kind)


def _add_keys(writer: gguf.GGUFWriter, s: Shape) -> None:
    writer.add_name(s.name)
    writer.add_block_count(s.n_layers)
    writer.add_context_length(s.context)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff)
    if s.heads:
        writer.add_head_count(s.heads)
        writer.add_head_count_kv(s.kv_heads)
    if s.head_dim:
        writer.add_key_length(s.head_dim)
        writer.add_value_length(s.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(s.n_vocab)
    if s.experts:
        writer.add_expert_count(s.experts)
        writer.add_expert_used_count(s.experts_used)
        if s.n_ff_expert:
            writer.add_expert_feed_forward_length(s.n_ff_expert)
    for key, value in s.extra.items():
        name = f"{s.architecture}.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    # A file without tokens: llama.cpp takes their number from `vocab_size`, and measures the same.
    writer.add_tokenizer_model("no_vocab")


def main() -> None:
    """Write the named shapes (all by default) into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=sorted(SHAPES))
    parser.add_argument("--type", default="F16", help="tensor type of the matrices")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        path = write(quantized(SHAPES[name], options.type), options.folder)
        print(path)


if __name__ == "__main__":
    main()
