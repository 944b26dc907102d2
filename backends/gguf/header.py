"""The header of a GGUF model: metadata, tensors, quantization, shape. Shards count as one model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from backends.gguf.checks import reject
from backends.gguf.model_shape import build_shape
from backends.gguf.quantization import (
    FILE_TYPES,
    min_bits_per_weight,
    quantization,
    weights_by_type,
)
from backends.gguf.shards import read_tables, split_number
from backends.gguf.table import FileIdentity, FileTable, HeaderValue, TensorInfo
from budget.memory.shape import ModelShape

_SHOWN_NAME: Final = 200


@dataclass(frozen=True)
class GgufHeader:
    """The header of a model in one file or several.

    `metadata` is the first file's; a large array in it is a `SkimmedArray`. `tensors` are those of
    all files, in order. Everything else is derived, and computed once.
    """

    files: tuple[Path, ...]
    file_bytes: int
    identities: tuple[FileIdentity, ...]
    metadata: Mapping[str, HeaderValue] = field(repr=False)
    key_offsets: Mapping[str, int] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)

    def shape(self) -> ModelShape:
        """The shape of the model, for footprints.

        Raises:
            BadModelFile: a hyperparameter is missing or impossible.
        """
        return self._shape

    @cached_property
    def _shape(self) -> ModelShape:
        return build_shape(self.files[0], self.metadata, self.key_offsets, self.tensors)

    @property
    def name(self) -> str:
        """The model's own name, or the file's where it has none."""
        name = self.metadata.get("general.name")
        return name[:_SHOWN_NAME] if isinstance(name, str) and name else self.files[0].stem

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture; empty when the file does not say."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) else ""

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, or `None`."""
        value = self.metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None

    @property
    def file_type(self) -> str | None:
        """The file's own claim of its type (`general.file_type`), or `None` when it has none."""
        value = self.metadata.get("general.file_type")
        return FILE_TYPES.get(value, f"type {value}") if type(value) is int else None

    @cached_property
    def quantization(self) -> str:
        """The main type of the tensors: `Q4_K_M`, `Q8_0`, `F16`, ..."""
        return quantization(self.tensors)

    @cached_property
    def weights_by_type(self) -> Mapping[str, int]:
        """The number of weights of each ggml type, most frequent first."""
        return weights_by_type(self.tensors)

    @cached_property
    def min_bits_per_weight(self) -> float:
        """The bits per weight of the coarsest matrix (8.5 for Q8_0, 4.5 for Q4_K)."""
        return min_bits_per_weight(self.tensors)

    @cached_property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(tensor.n_elements for tensor in self.tensors)

    @cached_property
    def identity(self) -> str:
        """A key for caches: it changes when a file is replaced or touched, not when it is renamed.

        Made of each file's device, inode, size, modification time and a hash of its header.
        """
        parts = "|".join(
            f"{i.device}:{i.inode}:{i.n_bytes}:{i.mtime_ns}:{i.header_hash}"
            for i in self.identities
        )
        return hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()

    def check_unchanged(self) -> None:
        """Check that the files have not changed since their headers were read.

        Raises:
            BadModelFile: a file was replaced, written to or removed.
        """
        for path, read in zip(self.files, self.identities, strict=True):
            try:
                now = path.stat()
            except OSError as error:
                reject(path, "changed", f"is gone: {error.strerror}.", offset=0)
            if (read.device, read.inode, read.n_bytes, read.mtime_ns) != (
                now.st_dev,
                now.st_ino,
                now.st_size,
                now.st_mtime_ns,
            ):
                reject(
                    path,
                    "changed",
                    "the file was replaced or written to after its header was read.",
                    offset=0,
                    hint="Ask again when it is whole.",
                )


def read_header(path: str | Path) -> GgufHeader:
    """Read the header of a model; for the first of several shards those of all of them.

    Raises:
        BadModelFile: the file, or a shard of it, is missing, damaged or impossible. Facts: `file`,
            `offset` (bytes from its start), `check`.
    """
    tables = read_tables(Path(path))
    first = tables[0]
    tensors = tuple(tensor for table in tables for tensor in table.tensors)
    _check_shards(tables, tensors)
    return GgufHeader(
        files=tuple(table.path for table in tables),
        file_bytes=sum(table.identity.n_bytes for table in tables),
        identities=tuple(table.identity for table in tables),
        metadata=first.metadata,
        key_offsets=first.key_offsets,
        tensors=tensors,
    )


def _check_shards(tables: tuple[FileTable, ...], tensors: tuple[TensorInfo, ...]) -> None:
    first = tables[0]
    for i, table in enumerate(tables[1:], start=1):
        found = (split_number(table, "split.no", 0), split_number(table, "split.count", 1))
        if found != (i, len(tables)):
            reject(
                table.path,
                "shard",
                f"it says to be shard {found[0] + 1} of {found[1]}, where shard {i + 1} of "
                f"{len(tables)} is due.",
                offset=table.key_offsets.get("split.no", 0),
            )
    if len(tables) > 1 and len({tensor.name for tensor in tensors}) != len(tensors):
        reject(first.path, "duplicate_tensor", "two shards hold the same tensor.", offset=0)
    claimed = split_number(first, "split.tensors.count", len(tensors))
    if claimed != len(tensors):
        reject(
            first.path,
            "shard",
            f"the shards hold {len(tensors)} tensors and split.tensors.count is {claimed}.",
            offset=first.key_offsets["split.tensors.count"],
        )
