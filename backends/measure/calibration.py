"""Models that are made to be measured: real blocks of one ggml type, in a llama of any width and depth.

The values of the weights do not change the time as long as they are finite; arithmetic on infinities and
denormals is slow. So each block gets a small scale and random bits beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from numpy.typing import NDArray

from budget.memory.shape import GGML_TYPES, row_bytes

_SCALE_AT: Final[Mapping[str, tuple[int, ...]]] = {
    "Q4_0": (0,),
    "Q5_0": (0,),
    "Q8_0": (0,),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_XS": (0,),
}
"""Offsets of the half-precision scales of a block (ggml's `ggml-common.h`)."""

_TILE_BYTES: Final = 1 << 20
_SPECIAL: Final = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True, slots=True)
class Calibration:
    """One model to measure."""

    ggml_type: str
    n_layers: int
    n_embd: int
    n_ff: int
    heads: int
    n_vocab: int = 512

    @property
    def layer_bytes(self) -> int:
        """Bytes of the matrices of one layer."""
        return sum(row_bytes(self.ggml_type, c) * r for _, c, r in self._layer())

    @property
    def output_bytes(self) -> int:
        """Bytes of the output matrix."""
        return row_bytes(self.ggml_type, self.n_embd) * self.n_vocab

    @property
    def read_bytes(self) -> int:
        """Bytes that a token reads."""
        return self.layer_bytes * self.n_layers + self.output_bytes

    def _layer(self) -> Iterator[tuple[str, int, int]]:
        embd, ff = self.n_embd, self.n_ff
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield name, embd, embd
        yield "ffn_gate", embd, ff
        yield "ffn_up", embd, ff
        yield "ffn_down", ff, embd

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and dimensions, row length first."""
        yield "token_embd.weight", (self.n_embd, self.n_vocab)
        for layer in range(self.n_layers):
            for name, columns, rows in self._layer():
                yield f"blk.{layer}.{name}.weight", (columns, rows)
            yield f"blk.{layer}.attn_norm.weight", (self.n_embd,)
            yield f"blk.{layer}.ffn_norm.weight", (self.n_embd,)
        yield "output_norm.weight", (self.n_embd,)
        yield "output.weight", (self.n_embd, self.n_vocab)


def wide(ggml_type: str, target_bytes: int) -> Calibration:
    """A model of about that many bytes, with nearly all of its time spent on reading them."""
    one = Calibration(ggml_type, 1, 1024, 2816, 16)
    return Calibration(ggml_type, max(2, round(target_bytes / one.layer_bytes)), 1024, 2816, 16)


def narrow(n_layers: int) -> Calibration:
    """A model with nearly all of its time spent on the fixed cost of layers."""
    return Calibration("Q8_0", n_layers, 256, 512, 4)


def small(n_vocab: int, n_layers: int) -> Calibration:
    """A model of zeros that takes next to nothing but its vocabulary and its layers."""
    return Calibration("F32", n_layers, 64, 128, 1, n_vocab)


def write_calibration(model: Calibration, path: Path) -> Path:
    """Write the model; returns its path. The same model always gets the same bytes."""
    writer = gguf.GGUFWriter(str(path), "llama")
    _add_metadata(writer, model)
    kind = gguf.GGMLQuantizationType[model.ggml_type]
    tensors = list(model.tensors())
    for name, dims in tensors:
        if len(dims) == 1:
            writer.add_tensor_info(name, dims, np.dtype(np.float32), dims[0] * 4)
        else:
            row = row_bytes(model.ggml_type, dims[0])
            writer.add_tensor_info(
                name, (dims[1], row), np.dtype(np.uint8), row * dims[1], raw_dtype=kind
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    tile = _tile(model.ggml_type)
    for _, dims in tensors:
        writer.write_tensor_data(_data(model.ggml_type, dims, tile))
    writer.close()
    return path


def _data(ggml_type: str, dims: tuple[int, ...], tile: NDArray[np.uint8]) -> NDArray[Any]:
    if len(dims) == 1:
        return np.ones(dims[0], dtype=np.float32)
    n_bytes = row_bytes(ggml_type, dims[0]) * dims[1]
    return np.resize(tile, n_bytes)


def _tile(ggml_type: str) -> NDArray[np.uint8]:
    """About a MiB of whole blocks."""
    rng = np.random.Generator(np.random.SFC64(7))
    if ggml_type == "F32":
        return np.zeros(_TILE_BYTES, np.uint8)
    if ggml_type == "F16":
        values = rng.standard_normal(_TILE_BYTES // 2, np.float32) * np.float32(0.02)
        return values.astype(np.float16).view(np.uint8)
    block = GGML_TYPES[ggml_type][1]
    blocks = rng.integers(0, 256, (_TILE_BYTES // block, block), dtype=np.uint8)
    scale = np.frombuffer(np.float16(1e-3).tobytes(), dtype=np.uint8)
    for at in _SCALE_AT[ggml_type]:
        blocks[:, at : at + 2] = scale
    return blocks.reshape(-1)


def _add_metadata(writer: gguf.GGUFWriter, model: Calibration) -> None:
    writer.add_name(f"calibration {model.ggml_type} {model.n_layers}x{model.n_embd}")
    writer.add_context_length(4096)
    writer.add_embedding_length(model.n_embd)
    writer.add_block_count(model.n_layers)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.heads)
    writer.add_rope_dimension_count(model.n_embd // model.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.n_vocab)
    writer.add_tokenizer_model("llama")
    words = [*_SPECIAL, *(f"<0x{i:02X}>" for i in range(256))]
    fill = model.n_vocab - len(words)
    # Words as long as those of real vocabularies are.
    writer.add_token_list(words + [f"\u2581w{i}" for i in range(fill)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * fill)
    writer.add_token_scores([0.0] * model.n_vocab)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
