"""Sparse files beside a model: a multimodal projector of gemma 3's kind, and a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import gguf
import numpy as np

_ALIGNMENT = 32
_CHANNELS = 3


def _finish(
    writer: gguf.GGUFWriter, path: Path, tensors: Iterable[tuple[str, tuple[int, ...]]]
) -> Path:
    data_bytes = 0
    for name, dims in tensors:
        # Matrices are F16, vectors F32, as conversions write them.
        kind = np.float16 if len(dims) > 1 and "position" not in name else np.float32
        n_bytes = int(np.prod(dims, dtype=np.int64)) * np.dtype(kind).itemsize
        writer.add_tensor_info(name, tuple(reversed(dims)), np.dtype(kind), n_bytes)
        data_bytes += -(-n_bytes // _ALIGNMENT) * _ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // _ALIGNMENT) * _ALIGNMENT + data_bytes)
    return path


def write_projector(
    path: Path,
    *,
    n_layers: int = 4,
    n_embd: int = 1152,
    n_ff: int = 4304,
    heads: int = 16,
    image_size: int = 896,
    patch_size: int = 14,
    model_embd: int = 2560,
) -> Path:
    """Write a vision tower with gemma 3's projection, without weights; returns its path."""
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", val=True)
    for key, value in {
        "image_size": image_size,
        "patch_size": patch_size,
        "embedding_length": n_embd,
        "feed_forward_length": n_ff,
        "projection_dim": model_embd,
        "block_count": n_layers,
        "attention.head_count": heads,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * _CHANNELS)
    writer.add_array("clip.vision.image_std", [0.5] * _CHANNELS)
    n_patches = (image_size // patch_size) ** 2
    ends: list[tuple[str, tuple[int, ...]]] = [
        ("v.patch_embd.weight", (patch_size, patch_size, _CHANNELS, n_embd)),
        ("v.patch_embd.bias", (n_embd,)),
        ("v.position_embd.weight", (n_embd, n_patches)),
        ("v.post_ln.weight", (n_embd,)),
        ("v.post_ln.bias", (n_embd,)),
        ("mm.input_projection.weight", (model_embd, n_embd)),
        ("mm.soft_emb_norm.weight", (n_embd,)),
    ]
    blocks = [t for i in range(n_layers) for t in _block(f"v.blk.{i}", n_embd, n_ff)]
    return _finish(writer, path, [*ends, *blocks])


def fill_weights(path: Path, *, seed: int = 3, spread: float = 0.3) -> Path:
    """Give every tensor of a small file random weights, the same each time; returns its path."""
    reader = gguf.GGUFReader(path, "r+")
    rng = np.random.Generator(np.random.SFC64(seed))
    for tensor in reader.tensors:
        values = rng.standard_normal(tensor.data.shape) * spread
        tensor.data[...] = values.astype(tensor.data.dtype)
    reader.data.flush()
    return path


def _block(name: str, n_embd: int, n_ff: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in ("ln1", "ln2"):
        yield f"{name}.{norm}.weight", (n_embd,)
        yield f"{name}.{norm}.bias", (n_embd,)
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        yield f"{name}.{part}.weight", (n_embd, n_embd)
        yield f"{name}.{part}.bias", (n_embd,)
    for part, rows, columns in (("ffn_up", n_embd, n_ff), ("ffn_down", n_ff, n_embd)):
        yield f"{name}.{part}.weight", (rows, columns)
        yield f"{name}.{part}.bias", (columns,)


def write_adapter(
    path: Path, architecture: str, targets: Iterable[tuple[str, int, int]], rank: int = 16
) -> Path:
    """Write a LoRA adapter for matrices (name, inputs, outputs), without weights; returns its path."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    tensors = []
    for name, inputs, outputs in targets:
        tensors.append((f"{name}.lora_a", (inputs, rank)))
        tensors.append((f"{name}.lora_b", (rank, outputs)))
    return _finish(writer, path, tensors)
