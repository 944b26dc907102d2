"""Shapes of well-known models, for machines and files that are not here.

Dimensions are those of the published models; the mixes are llama.cpp's (`src/llama-quant.cpp`).
Read sizes from a file where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from budget.errors import UnknownModel
from budget.memory.shape import ModelShape, TensorShape, row_bytes

FILE_TYPES: Final = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
"""The file types that shapes can be made for, most bits first."""


@dataclass(frozen=True, slots=True)
class Known:
    """The numbers of a dense model."""

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    n_ff: int
    heads: int
    kv_heads: int
    n_vocab: int
    context: int
    head_dim: int = 0
    tied: bool = False

    @property
    def dim(self) -> int:
        """Elements of one attention head."""
        return self.head_dim or self.n_embd // self.heads


KNOWN: Final[Mapping[str, Known]] = {
    known.name: known
    for known in (
        Known("qwen2.5-0.5b", "qwen2", 24, 896, 4864, 14, 2, 151936, 32768, tied=True),
        Known("llama-3.2-1b", "llama", 16, 2048, 8192, 32, 8, 128256, 131072, 64, tied=True),
        Known("qwen2.5-1.5b", "qwen2", 28, 1536, 8960, 12, 2, 151936, 32768, tied=True),
        Known("llama-3.2-3b", "llama", 28, 3072, 8192, 24, 8, 128256, 131072, 128, tied=True),
        Known("qwen3-4b", "qwen3", 36, 2560, 9728, 32, 8, 151936, 40960, 128, tied=True),
        Known("llama-2-7b", "llama", 32, 4096, 11008, 32, 32, 32000, 4096),
        Known("qwen2.5-7b", "qwen2", 28, 3584, 18944, 28, 4, 152064, 131072),
        Known("llama-3.1-8b", "llama", 32, 4096, 14336, 32, 8, 128256, 131072),
        Known("qwen3-8b", "qwen3", 36, 4096, 12288, 32, 8, 151936, 40960, 128),
        Known("llama-2-13b", "llama", 40, 5120, 13824, 40, 40, 32000, 4096),
        Known("qwen2.5-14b", "qwen2", 48, 5120, 13824, 40, 8, 152064, 131072),
        Known("qwen2.5-32b", "qwen2", 64, 5120, 27648, 40, 8, 152064, 131072),
        Known("llama-3.1-70b", "llama", 80, 8192, 28672, 64, 8, 128256, 131072),
    )
}
"""By the name to ask for."""


def known_shape(name: str, file_type: str) -> ModelShape:
    """The shape of a well-known model as a file of that type.

    Raises:
        UnknownModel: no model of that name, or no such file type, is built in.
    """
    known = KNOWN.get(name.lower())
    if known is None or file_type not in FILE_TYPES:
        what = f"model called {name!r}" if known is None else f"file type {file_type!r}"
        raise UnknownModel(
            f"no {what} is built in.",
            hint=f"There are {', '.join(KNOWN)} as {', '.join(FILE_TYPES)}; or give a GGUF file.",
            model=name,
        )
    layers = known.n_layers
    return ModelShape(
        name=f"{known.name} {file_type}",
        architecture=known.architecture,
        n_layers=layers,
        n_embd=known.n_embd,
        n_vocab=known.n_vocab,
        context_length=known.context,
        tensors=tuple(_tensors(known, file_type)),
        heads=(known.heads,) * layers,
        kv_heads=(known.kv_heads,) * layers,
        head_dim_k=(known.dim,) * layers,
        head_dim_v=(known.dim,) * layers,
        n_ff=(known.n_ff,) * layers,
        n_ff_expert=(0,) * layers,
        window_layers=(False,) * layers,
        recurrent_layers=(False,) * layers,
        rope_dims=known.dim,
        tied_embeddings=known.tied,
    )


def _tensors(known: Known, file_type: str) -> Iterator[TensorShape]:
    embd, q, kv = known.n_embd, known.heads * known.dim, known.kv_heads * known.dim
    embedding = "output" if known.tied else "token_embd"
    yield _matrix("token_embd.weight", embd, known.n_vocab, _kind(file_type, embedding, 0, 1))
    for layer in range(known.n_layers):
        for name, columns, rows in (
            ("attn_q", embd, q),
            ("attn_k", embd, kv),
            ("attn_v", embd, kv),
            ("attn_output", q, embd),
            ("ffn_gate", embd, known.n_ff),
            ("ffn_up", embd, known.n_ff),
            ("ffn_down", known.n_ff, embd),
        ):
            kind = _kind(file_type, name, layer, known.n_layers)
            yield _matrix(f"blk.{layer}.{name}.weight", columns, rows, kind)
        yield from _vectors(known, layer)
    yield _vector("output_norm.weight", embd)
    if not known.tied:
        yield _matrix("output.weight", embd, known.n_vocab, _kind(file_type, "output", 0, 1))


def _vectors(known: Known, layer: int) -> Iterator[TensorShape]:
    block = f"blk.{layer}"
    yield _vector(f"{block}.attn_norm.weight", known.n_embd)
    yield _vector(f"{block}.ffn_norm.weight", known.n_embd)
    if known.architecture == "qwen2":
        yield _vector(f"{block}.attn_q.bias", known.heads * known.dim)
        yield _vector(f"{block}.attn_k.bias", known.kv_heads * known.dim)
        yield _vector(f"{block}.attn_v.bias", known.kv_heads * known.dim)
    if known.architecture == "qwen3":
        yield _vector(f"{block}.attn_q_norm.weight", known.dim)
        yield _vector(f"{block}.attn_k_norm.weight", known.dim)


_FALLBACKS: Final = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def _matrix(name: str, columns: int, rows: int, kind: str) -> TensorShape:
    used = kind if columns % 256 == 0 else _FALLBACKS.get(kind, kind)
    return TensorShape(name, used, (columns, rows), row_bytes(used, columns) * rows)


def _vector(name: str, elements: int) -> TensorShape:
    return TensorShape(name, "F32", (elements,), elements * 4)


def _kind(file_type: str, tensor: str, layer: int, n_layers: int) -> str:
    """The type that a mix gives to a tensor."""
    if not file_type.endswith("_M"):
        return file_type
    base = file_type.removesuffix("_M")
    if tensor == "output":
        return "Q6_K"
    if base == "Q3_K":
        return _q3_kind(tensor, layer, n_layers)
    if tensor in ("attn_v", "ffn_down") and _more_bits(layer, n_layers):
        return "Q6_K"
    return base


def _q3_kind(tensor: str, layer: int, n_layers: int) -> str:
    if tensor == "attn_v":
        return "Q5_K" if layer < 2 else "Q4_K"
    if tensor == "ffn_down":
        return "Q5_K" if layer < n_layers // 16 else "Q4_K"
    return "Q4_K" if tensor == "attn_output" else "Q3_K"


def _more_bits(layer: int, n_layers: int) -> bool:
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
