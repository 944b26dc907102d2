"""GGUF files built byte by byte, with a record of where each field lies, to be damaged on purpose."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Literal

FieldKind = Literal["version", "count", "length", "type", "value", "n_dims", "dim", "offset"]

_FORMATS = {0: "B", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 12: "d"}
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 5, 6, 7, 8, 9, 10, 12


@dataclass(frozen=True)
class Key:
    """A metadata entry; for an array, `element` is its element type and `value` a tuple."""

    name: bytes
    kind: int
    value: object
    element: int = U32


@dataclass(frozen=True)
class Tensor:
    """A tensor table entry; the offset is computed when it is `None`."""

    name: bytes
    dims: tuple[int, ...]
    kind: int
    n_bytes: int
    offset: int | None = None


@dataclass
class Layout:
    """The bytes of a file and its fields: offset, size in bytes, kind."""

    data: bytearray = field(default_factory=bytearray)
    fields: list[tuple[int, int, FieldKind]] = field(default_factory=list)

    def put(self, code: str, value: object, kind: FieldKind) -> None:
        """Append a number and remember where it is."""
        packed = struct.pack("<" + code, value)
        self.fields.append((len(self.data), len(packed), kind))
        self.data += packed

    def text(self, value: bytes) -> None:
        """Append a length and its bytes."""
        self.put("Q", len(value), "length")
        self.data += value

    def scalar(self, kind: int, value: object) -> None:
        """Append a value of a scalar type."""
        if kind == STRING:
            assert isinstance(value, bytes)
            self.text(value)
        else:
            self.put(_FORMATS[kind], value, "value")


def build(keys: list[Key], tensors: list[Tensor], *, alignment: int = 32) -> Layout:
    """The file that these entries make, its tensor data zero."""
    out = Layout(bytearray(b"GGUF"))
    out.put("I", 3, "version")
    out.put("Q", len(tensors), "count")
    out.put("Q", len(keys), "count")
    for key in keys:
        out.text(key.name)
        out.put("I", key.kind, "type")
        if key.kind == ARRAY:
            assert isinstance(key.value, tuple)
            out.put("I", key.element, "type")
            out.put("Q", len(key.value), "length")
            for value in key.value:
                out.scalar(key.element, value)
        else:
            out.scalar(key.kind, key.value)
    at = 0
    for tensor in tensors:
        out.text(tensor.name)
        out.put("I", len(tensor.dims), "n_dims")
        for dim in tensor.dims:
            out.put("Q", dim, "dim")
        out.put("I", tensor.kind, "type")
        out.put("Q", at if tensor.offset is None else tensor.offset, "offset")
        at += -(-tensor.n_bytes // alignment) * alignment
    out.data += bytes(-len(out.data) % alignment + at)
    return out


def llama_keys() -> list[Key]:
    """The metadata of a small llama, with every kind of value."""
    tokens = tuple(f"t{i}".encode() for i in range(24))
    return [
        Key(b"general.architecture", STRING, b"llama"),
        Key(b"general.name", STRING, "na\u00efve".encode()),
        Key(b"general.alignment", U32, 32),
        Key(b"general.file_type", U32, 7),
        Key(b"llama.block_count", U32, 2),
        Key(b"llama.context_length", U32, 4096),
        Key(b"llama.embedding_length", U32, 64),
        Key(b"llama.feed_forward_length", ARRAY, (128, 96), U32),
        Key(b"llama.attention.head_count", U32, 4),
        Key(b"llama.attention.head_count_kv", ARRAY, (2, 1), I32),
        Key(b"llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        Key(b"llama.rope.freq_base", F32, 10000.0),
        Key(b"llama.attention.causal", BOOL, 1),
        Key(b"general.tags", ARRAY, (b"one", b"two"), STRING),
        Key(b"some.bytes", ARRAY, tuple(range(9)), U8),
        Key(b"some.double", F64, 0.5),
        Key(b"some.big", U64, 1 << 40),
        Key(b"tokenizer.ggml.tokens", ARRAY, tokens, STRING),
        Key(b"tokenizer.ggml.scores", ARRAY, (0.0,) * 24, F32),
        Key(b"tokenizer.chat_template", STRING, b"{{ messages }}"),
    ]


def llama_tensors() -> list[Tensor]:
    """Its tensors: F32 vectors, Q8_0 and F16 matrices."""
    tensors = [Tensor(b"token_embd.weight", (64, 24), 8, 24 * 68)]
    for i in range(2):
        block = f"blk.{i}.".encode()
        tensors += [
            Tensor(block + b"attn_norm.weight", (64,), 0, 256),
            Tensor(block + b"attn_q.weight", (64, 64), 8, 64 * 68),
            Tensor(block + b"ffn_up.weight", (64, 128), 1, 64 * 128 * 2),
        ]
    return [*tensors, Tensor(b"output_norm.weight", (64,), 0, 256)]
