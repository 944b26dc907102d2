"""A cursor over the mapped start of a GGUF file that skims it and trusts nothing.

Every length and count is checked against the bytes that are left before anything is read or
allocated. Arrays that only a tokenizer needs are stepped over: no object is made per entry.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn

from backends.gguf.walk import walk_strings
from budget.errors import BadModelFile
from budget.estimate.shape import MetadataValue, Scalar

Check = Literal[
    "file",
    "magic",
    "version",
    "endianness",
    "tensor_count",
    "metadata_count",
    "truncated",
    "header_size",
    "string_length",
    "utf8",
    "empty_key",
    "duplicate_key",
    "value_type",
    "array_type",
    "array_nesting",
    "array_length",
    "alignment",
    "tensor_name",
    "duplicate_tensor",
    "tensor_dims",
    "tensor_size",
    "tensor_type",
    "tensor_block",
    "tensor_offset",
    "tensor_bounds",
    "shape",
    "shard",
]
"""The checks that reject a file; the one that did is the `check` fact of a `BadModelFile`."""

# Bounds that no real model comes near, so that a hostile file of any size is refused in moments.
MAX_HEADER_BYTES: Final = 512 << 20
MAX_STRING_BYTES: Final = 64 << 20
MAX_STRINGS: Final = 8_000_000
MAX_KEPT_ELEMENTS: Final = 4096
MAX_KEPT_STRINGS: Final = 256

_STRING: Final = 8
_ARRAY: Final = 9
_BOOL: Final = 7
_FORMATS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_SCALARS: Final = {kind: struct.Struct("<" + code) for kind, code in _FORMATS.items()}
_NAMES: Final = {
    0: "u8",
    1: "i8",
    2: "u16",
    3: "i16",
    4: "u32",
    5: "i32",
    6: "f32",
    _BOOL: "bool",
    _STRING: "string",
    10: "u64",
    11: "i64",
    12: "f64",
}
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class SkimmedArray:
    """An array that was stepped over: its element type, how many, and where it lies in the file."""

    element_type: str
    count: int
    offset: int
    n_bytes: int


class Cursor:
    """A read position in a mapped header.

    Args:
        view: the mapped bytes.
        path: the file, for error messages.
        clipped: whether the file goes on behind the view.
    """

    def __init__(self, view: memoryview, path: Path, *, clipped: bool) -> None:
        self._view = view
        self._path = path
        self._clipped = clipped
        self._strings_left = MAX_STRINGS
        self._string_bytes_left = MAX_STRING_BYTES
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes of the view behind the position."""
        return len(self._view) - self.position

    def reject(
        self, check: Check, what: str, *, offset: int | None = None, hint: str = ""
    ) -> NoReturn:
        """Raise the `BadModelFile` for a failed check.

        Args:
            check: which one.
            what: what was found and what is allowed.
            offset: bytes from the start of the file; the current position when `None`.
            hint: what to do; a general advice when empty.
        """
        reject(
            self._path, check, what, offset=self.position if offset is None else offset, hint=hint
        )

    def need(self, n_bytes: int, what: str) -> None:
        """Raise unless `n_bytes` more bytes are there for `what`."""
        if n_bytes <= self.remaining:
            return
        if self._clipped:
            self.reject(
                "header_size",
                f"{what} lies behind the first {MAX_HEADER_BYTES} bytes, "
                "and no header may be longer than that.",
            )
        self.reject("truncated", f"{what} needs {n_bytes} bytes and the file has {self.remaining}.")

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next `n_bytes` bytes."""
        self.need(n_bytes, what)
        start = self.position
        self.position = start + n_bytes
        return bytes(self._view[start : self.position])

    def u32(self, what: str) -> int:
        """The next four bytes as a number."""
        self.need(4, what)
        (value,) = _U32.unpack_from(self._view, self.position)
        self.position += 4
        return int(value)

    def u64(self, what: str) -> int:
        """The next eight bytes as a number."""
        self.need(8, what)
        (value,) = _U64.unpack_from(self._view, self.position)
        self.position += 8
        return int(value)

    def string(self, what: str) -> str:
        """A length and that many bytes of UTF-8."""
        start = self.position
        length = self.u64(f"the length of {what}")
        if length > self.remaining:
            self.reject(
                "string_length",
                f"{what} claims {length} bytes and {self.remaining} are left.",
                offset=start,
            )
        if length > self._string_bytes_left:
            self.reject(
                "string_length",
                f"{what} has {length} bytes; all texts of a header together may have "
                f"{MAX_STRING_BYTES}.",
                offset=start,
            )
        self._string_bytes_left -= length
        raw = self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.reject(
                "utf8", f"{what} is not UTF-8 ({error.reason}).", offset=start + 8 + error.start
            )

    def value(self, key: str) -> MetadataValue | SkimmedArray:
        """A typed value: a scalar, a small array as a tuple, or where a skimmed array lies."""
        start = self.position
        kind = self.u32(f"the type of {key!r}")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _NAMES:
            self.reject(
                "value_type", f"{key!r} has value type {kind}; 0 to 12 are known.", offset=start
            )
        return self._scalar(kind, key)

    def _scalar(self, kind: int, key: str) -> Scalar:
        if kind == _STRING:
            return self.string(f"the value of {key!r}")
        unpacker = _SCALARS[kind]
        self.need(unpacker.size, f"the value of {key!r}")
        value: int | float = unpacker.unpack_from(self._view, self.position)[0]
        self.position += unpacker.size
        return value != 0 if kind == _BOOL else value

    def _array(self, key: str) -> MetadataValue | SkimmedArray:
        start = self.position
        kind = self.u32(f"the element type of {key!r}")
        if kind == _ARRAY:
            self.reject(
                "array_nesting",
                f"{key!r} is an array of arrays, which llama.cpp does not load.",
                offset=start,
            )
        if kind not in _NAMES:
            self.reject(
                "array_type",
                f"{key!r} has elements of type {kind}; 0 to 12 without 9 are known.",
                offset=start,
            )
        count = self.u64(f"the length of {key!r}")
        if kind == _STRING:
            return self._string_array(key, count)
        return self._number_array(key, kind, count)

    def _check_count(self, key: str, count: int, least_bytes: int) -> None:
        if count * least_bytes > self.remaining:
            self.reject(
                "array_length",
                f"{key!r} claims {count} elements of at least {least_bytes} bytes "
                f"and {self.remaining} bytes are left.",
                offset=self.position - 8,
            )

    def _number_array(self, key: str, kind: int, count: int) -> MetadataValue | SkimmedArray:
        unpacker = _SCALARS[kind]
        self._check_count(key, count, unpacker.size)
        start, n_bytes = self.position, count * unpacker.size
        self.position = start + n_bytes
        if count > MAX_KEPT_ELEMENTS or key.startswith("tokenizer."):
            return SkimmedArray(_NAMES[kind], count, start, n_bytes)
        values = struct.unpack_from(f"<{count}{_FORMATS[kind]}", self._view, start)
        return tuple(value != 0 for value in values) if kind == _BOOL else values

    def _string_array(self, key: str, count: int) -> MetadataValue | SkimmedArray:
        self._check_count(key, count, 8)
        if count > self._strings_left:
            self.reject(
                "array_length",
                f"{key!r} has {count} texts; a header may have {MAX_STRINGS}.",
                offset=self.position - 8,
            )
        self._strings_left -= count
        start = self.position
        if count <= MAX_KEPT_STRINGS and not key.startswith("tokenizer."):
            return tuple(self.string(f"element {i} of {key!r}") for i in range(count))
        self._skip_strings(key, count)
        return SkimmedArray("string", count, start, self.position - start)

    def _skip_strings(self, key: str, count: int) -> None:
        end = walk_strings(self._view, self.position, count)
        if end is None:
            self._blame_string(key, count)
        self.position = end

    def _blame_string(self, key: str, count: int) -> NoReturn:
        """Find the text whose length leads out of the file; the fast walk does not look."""
        for i in range(count):
            start = self.position
            length = self.u64(f"the length of element {i} of {key!r}")
            if length > self.remaining:
                self.reject(
                    "string_length",
                    f"element {i} of {key!r} claims {length} bytes and {self.remaining} are left.",
                    offset=start,
                )
            self.position += length
        self.reject("truncated", f"{key!r} leads out of the file.")


def reject(path: Path, check: Check, what: str, *, offset: int, hint: str = "") -> NoReturn:
    """Raise a `BadModelFile` with its facts: `file`, `offset` (bytes) and `check`."""
    raise BadModelFile(
        f"{path}: at byte {offset}: {what}",
        hint=hint or "Fetch or make the file again.",
        file=str(path),
        offset=offset,
        check=check,
    )
