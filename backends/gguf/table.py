"""One GGUF file: its metadata and its tensor table, skimmed from its start.

The format and its limits are those of ggml's `src/gguf.cpp`. A file that ggml refuses is refused here,
with the offset.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from backends.gguf.checks import reject, shown
from backends.gguf.header_limits import MAX_KEYS, MAX_TENSORS, Allowance
from backends.gguf.skim import Cursor, SkimmedArray
from backends.gguf.source import HeaderBytes, opened
from budget.memory.shape import GGML_TYPES, MetadataValue, TensorShape

HeaderValue = MetadataValue | SkimmedArray

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_DIMS: Final = 4
_MAX_NAME_BYTES: Final = 63
_MAX_BYTES: Final = (1 << 63) - 1
# The least bytes that a table entry takes: a name's length, then its fixed fields.
_LEAST_KEY_BYTES: Final = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES: Final = 8 + 4 + 4 + 8
_HASHED_START_BYTES: Final = 1 << 16

# ggml's type numbers (`enum ggml_type`); the missing ones were removed.
TYPE_NUMBERS: Final[Mapping[int, str]] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
    42: "Q2_0",
}


@dataclass(frozen=True, slots=True)
class TensorInfo(TensorShape):
    """A tensor, the offset of its data in its file (bytes), and which shard that file is."""

    offset: int
    shard: int = 0


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """The identity of a file's content: device, inode, size, modification time, hash of the header."""

    device: int
    inode: int
    n_bytes: int
    mtime_ns: int
    header_hash: str


@dataclass(frozen=True, slots=True)
class FileTable:
    """The header of one file. `key_offsets` has the offset of each value, for errors.

    `end` is the byte behind the last tensor's data.
    """

    path: Path
    version: int
    alignment: int
    identity: FileIdentity
    end: int
    metadata: Mapping[str, HeaderValue] = field(repr=False)
    key_offsets: Mapping[str, int] = field(repr=False)
    tensors: tuple[TensorInfo, ...] = field(repr=False)


def read_table(path: Path, allowance: Allowance | None = None, *, shard: int = 0) -> FileTable:
    """Read one file's header; `shard` marks its tensors.

    Args:
        path: the file.
        allowance: the limits for the header; reading uses them up.
        shard: the index of the file among those of its model.

    Raises:
        BadModelFile: the file is missing, is not a GGUF file, is impossible, or changed while it was
            read. Facts: `file`, `offset`, `check` (see `backends.gguf.checks.Check`).
    """
    allowance = allowance or Allowance()
    with opened(path) as (descriptor, status):
        n_bytes = min(status.st_size, allowance.header_bytes)
        source = HeaderBytes.of(path, descriptor, n_bytes)
        table = _read(source, path, status, shard, allowance)
        _check_unchanged(path, status, os.fstat(descriptor))
    return table


def _check_unchanged(path: Path, before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        reject(
            path,
            "changed",
            f"the file was written to while its header was read ({before.st_size} bytes, then "
            f"{after.st_size}).",
            offset=0,
            hint="Ask again when it is whole.",
        )


def _read(
    source: HeaderBytes, path: Path, status: os.stat_result, shard: int, allowance: Allowance
) -> FileTable:
    cursor = Cursor(source, path, allowance, clipped=status.st_size > source.n_bytes)
    start = source.copy(0, min(_HASHED_START_BYTES, source.n_bytes))
    digest = hashlib.blake2b(start, digest_size=16)
    version = _version(cursor)
    n_tensors = _count(cursor, "tensor_count", allowance.tensors, MAX_TENSORS, _LEAST_TENSOR_BYTES)
    allowance.tensors -= n_tensors
    n_keys = _count(cursor, "metadata_count", allowance.keys, MAX_KEYS, _LEAST_KEY_BYTES)
    allowance.keys -= n_keys
    metadata, key_offsets = _metadata(cursor, n_keys)
    alignment = _alignment(cursor, metadata, key_offsets)
    table_start = cursor.position
    tensors = _TensorTable(cursor, alignment, status.st_size, shard).read(n_tensors)
    for piece in cursor.pieces(table_start, cursor.position):
        digest.update(piece)
    allowance.header_bytes -= cursor.position
    identity = FileIdentity(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, digest.hexdigest()
    )
    end = max((tensor.offset + tensor.n_bytes for tensor in tensors), default=cursor.position)
    return FileTable(path, version, alignment, identity, end, metadata, key_offsets, tensors)


_OTHER_FILES: Final = {
    b"vers": "a pointer of Git LFS: run `git lfs pull` where it was cloned",
    b"<": "a web page, as a site sends it in the place of a file",
    b"{": "JSON, as a site sends an error in the place of a file",
    b"PK": "an archive, perhaps a model of PyTorch: llama.cpp's convert_hf_to_gguf.py makes GGUF files",
    b"\0\0\0\0": "a file of zeros, as an unfinished download is",
    b"tjgg": "of llama.cpp's format before GGUF: fetch it anew as GGUF",
    b"lmgg": "of llama.cpp's format before GGUF: fetch it anew as GGUF",
}
"""How files of other kinds begin, and what they are."""


def _version(cursor: Cursor) -> int:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        what = next((said for begin, said in _OTHER_FILES.items() if magic.startswith(begin)), "")
        cursor.reject(
            "magic",
            f"the file starts with {magic!r}, a GGUF file with {MAGIC!r}.{what and f' It is {what}.'}",
            offset=0,
        )
    version = cursor.u32("the version")
    if version and not version & 0xFFFF:
        cursor.reject(
            "endianness",
            f"version {version:#x} is that of a file for big-endian machines.",
            offset=4,
            hint="Fetch the little-endian file.",
        )
    if version not in _VERSIONS:
        cursor.reject("version", f"version {version} is not supported; 2 and 3 are.", offset=4)
    return version


def _count(
    cursor: Cursor,
    check: Literal["tensor_count", "metadata_count"],
    left: int,
    most: int,
    least: int,
) -> int:
    """How many tensors or keys follow: `left` are allowed yet, each has at least `least` bytes."""
    start, what = cursor.position, check.replace("_", " ")
    count = cursor.u64(f"the {what}")
    if count > left or count * least > cursor.remaining:
        cursor.reject_length(
            check,
            f"the {what} is {count}; a model may have {most}, each of at least {least} bytes",
            offset=start,
        )
    return count


def _metadata(cursor: Cursor, n_keys: int) -> tuple[dict[str, HeaderValue], dict[str, int]]:
    metadata: dict[str, HeaderValue] = {}
    offsets: dict[str, int] = {}
    for i in range(n_keys):
        start = cursor.position
        key = cursor.key(i)
        if key in metadata:
            cursor.reject("duplicate_key", f"the key {shown(key)} is there twice.", offset=start)
        offsets[key] = cursor.position
        metadata[key] = cursor.value(key)
    return metadata, offsets


def _alignment(
    cursor: Cursor, metadata: Mapping[str, HeaderValue], offsets: Mapping[str, int]
) -> int:
    key = "general.alignment"
    value = metadata.get(key, _DEFAULT_ALIGNMENT)
    if type(value) is not int or value <= 0 or value & (value - 1):
        cursor.reject(
            "alignment", f"{key} is {shown(value)}; a power of two is allowed.", offset=offsets[key]
        )
    return value


class _TensorTable:
    """Reads the tensor table: names, dimensions, types, and offsets that follow one another."""

    def __init__(self, cursor: Cursor, alignment: int, file_bytes: int, shard: int) -> None:
        self._cursor = cursor
        self._alignment = alignment
        self._file_bytes = file_bytes
        self._shard = shard

    def read(self, count: int) -> tuple[TensorInfo, ...]:
        entries: list[tuple[int, str, str, tuple[int, ...], int, int]] = []
        seen: set[str] = set()
        expected = 0
        for i in range(count):
            start = self._cursor.position
            name = self._name(i, seen)
            dims = self._dims(name)
            ggml_type, n_bytes = self._type_and_bytes(name, dims)
            self._check_offset(name, expected)
            entries.append((start, name, ggml_type, dims, n_bytes, expected))
            expected += self._padded(n_bytes)
        data = self._padded(self._cursor.position)
        return tuple(
            TensorInfo(
                name,
                ggml_type,
                dims,
                n_bytes,
                offset=self._bounded(start, name, data + offset, n_bytes),
                shard=self._shard,
            )
            for start, name, ggml_type, dims, n_bytes, offset in entries
        )

    def _padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self._alignment) * self._alignment

    def _name(self, index: int, seen: set[str]) -> str:
        start = self._cursor.position
        what = f"the name of tensor {index}"
        name = self._cursor.text(what, _MAX_NAME_BYTES, "tensor_name")
        if not name:
            self._cursor.reject("tensor_name", f"{what} is empty.", offset=start)
        if name in seen:
            self._cursor.reject(
                "duplicate_tensor", f"the tensor {name!r} is there twice.", offset=start
            )
        seen.add(name)
        return name

    def _dims(self, name: str) -> tuple[int, ...]:
        start = self._cursor.position
        n_dims = self._cursor.u32(f"the number of dimensions of {name!r}")
        if not 1 <= n_dims <= _MAX_DIMS:
            self._cursor.reject(
                "tensor_dims",
                f"{name!r} has {n_dims} dimensions; 1 to {_MAX_DIMS} are allowed.",
                offset=start,
            )
        dims = tuple(self._cursor.u64(f"a dimension of {name!r}") for _ in range(n_dims))
        # A tensor without elements is legal since 2026, and takes no bytes.
        if not all(dim <= _MAX_BYTES for dim in dims):
            self._cursor.reject(
                "tensor_dims",
                f"{name!r} has the dimensions {dims}; each must be 0 to 2^63 - 1.",
                offset=start,
            )
        return dims

    def _type_and_bytes(self, name: str, dims: tuple[int, ...]) -> tuple[str, int]:
        start = self._cursor.position
        number = self._cursor.u32(f"the type of {name!r}")
        ggml_type = TYPE_NUMBERS.get(number)
        if ggml_type is None:
            self._cursor.reject(
                "tensor_type",
                f"{name!r} has tensor type {number}, which is not known.",
                offset=start,
                hint="The file is damaged, or newer than this keepwarm.",
            )
        block_elements, block_bytes = GGML_TYPES[ggml_type]
        if dims[0] % block_elements:
            self._cursor.reject(
                "tensor_block",
                f"{name!r} has rows of {dims[0]}; {ggml_type} needs a multiple of "
                f"{block_elements}.",
                offset=start,
            )
        n_bytes = dims[0] // block_elements * block_bytes
        for dim in dims[1:]:
            n_bytes *= dim
        if n_bytes > self._file_bytes:
            self._cursor.reject(
                "tensor_size",
                f"{name!r} {dims} of {ggml_type} takes {n_bytes} bytes and the file has "
                f"{self._file_bytes}.",
                offset=start,
                hint="The file is cut short or damaged: fetch it again.",
            )
        return ggml_type, n_bytes

    def _check_offset(self, name: str, expected: int) -> None:
        start = self._cursor.position
        offset = self._cursor.u64(f"the offset of {name!r}")
        if offset != expected:
            self._cursor.reject(
                "tensor_offset",
                f"{name!r} has its data at {offset}; {expected} follows from the tensors before "
                f"it and an alignment of {self._alignment}.",
                offset=start,
            )

    def _bounded(self, at: int, name: str, data_start: int, n_bytes: int) -> int:
        if data_start + n_bytes > self._file_bytes:
            self._cursor.reject(
                "tensor_bounds",
                f"the data of {name!r} ends at byte {data_start + n_bytes} and the file has "
                f"{self._file_bytes}.",
                offset=at,
                hint="The file is cut short: fetch it again.",
            )
        return data_start
