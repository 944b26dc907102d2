"""A cursor over the start of a GGUF file. It skims the file, and checks every value.

Every length and count is checked against the bytes that are left, and against what a header may
cost (`backends.gguf.header_limits`), before anything is read or allocated. Arrays that only a tokenizer
needs are stepped over: no object is made per entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from backends.gguf.checks import Check, reject, shown
from backends.gguf.header_limits import (
    MAX_HEADER_BYTES,
    MAX_KEPT_BYTES,
    MAX_KEPT_ELEMENTS,
    MAX_KEPT_NUMBERS,
    MAX_KEPT_TEXT_BYTES,
    MAX_KEPT_TEXTS,
    MAX_KEY_BYTES,
    MAX_TEXTS,
    Allowance,
)
from backends.gguf.source import HeaderBytes
from backends.gguf.walk import walk_strings
from budget.memory.shape import MetadataValue

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
    """An array that was stepped over: its element type, how many, and where it lies in the file.

    A text that is too long to be kept is one of bytes.
    """

    element_type: str
    count: int
    offset: int
    n_bytes: int


class Cursor:
    """A read position in a header.

    Args:
        source: its bytes, as many as the file has or as it may have.
        path: the file, for error messages.
        allowance: the limits that are left for the model's files; reading uses them up.
        clipped: whether the file continues after the source.
    """

    def __init__(
        self, source: HeaderBytes, path: Path, allowance: Allowance, *, clipped: bool
    ) -> None:
        self._source = source
        self._path = path
        self._clipped = clipped
        self.allowance = allowance
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes behind the position."""
        return self._source.n_bytes - self.position

    def reject(
        self, check: Check, what: str, *, offset: int | None = None, hint: str = ""
    ) -> NoReturn:
        """Raise the `BadModelFile` for a failed check.

        Args:
            check: the failed check.
            what: the found value and the allowed ones.
            offset: bytes from the start of the file; the current position when `None`.
            hint: advice for the user; a general one when empty.
        """
        reject(
            self._path, check, what, offset=self.position if offset is None else offset, hint=hint
        )

    def reject_length(self, check: Check, what: str, *, offset: int) -> NoReturn:
        """Raise the `BadModelFile` for a claim of more bytes than are left, of the file or of the bound."""
        if not self._clipped:
            self.reject(
                check, f"{what}, and {self.remaining} bytes of the file are left.", offset=offset
            )
        self.reject(
            check,
            f"{what}, and {self.remaining} bytes are left of the {MAX_HEADER_BYTES} that the headers of a "
            "model together may have.",
            offset=offset,
            hint="No header of a known model is so long: look at what made the file.",
        )

    def need(self, n_bytes: int, what: str) -> None:
        """Raise unless `n_bytes` more bytes are there for `what`."""
        if n_bytes <= self.remaining:
            return
        if self._clipped:
            self.reject(
                "header_size",
                f"{what} lies behind the first {self._source.n_bytes} bytes, and the headers of a "
                f"model together may have {MAX_HEADER_BYTES}.",
            )
        self.reject("truncated", f"{what} needs {n_bytes} bytes and the file has {self.remaining}.")

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next `n_bytes` bytes."""
        self.need(n_bytes, what)
        start = self.position
        self.position = start + n_bytes
        return self._source.copy(start, n_bytes)

    def pieces(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes between two positions, read again."""
        return self._source.pieces(start, end - start)

    def u32(self, what: str) -> int:
        """The next four bytes as a number."""
        return int(self._number(_U32, what))

    def u64(self, what: str) -> int:
        """The next eight bytes as a number."""
        return int(self._number(_U64, what))

    def _number(self, unpacker: struct.Struct, what: str) -> int | float:
        size = unpacker.size
        if self.position + size > self._source.n_bytes:
            self.need(size, what)
        view, offset = self._source.at(self.position, size)
        self.position += size
        value: int | float = unpacker.unpack_from(view, offset)[0]
        return value

    def text(self, what: str, most: int, check: Check = "string_length") -> str:
        """A length and the name of a key or tensor: that many bytes of UTF-8, `most` at most."""
        start = self.position
        length = self._length(what)
        if length > most:
            self.reject(
                check, f"{what} has {length} bytes; at most {most} are allowed.", offset=start
            )
        start = self.position
        raw = self._kept_bytes(what, length)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.reject(
                "utf8", f"{what} is not UTF-8 ({error.reason}).", offset=start + error.start
            )

    def _length(self, what: str) -> int:
        start = self.position
        length = self.u64(f"the length of {what}")
        if length > self.remaining:
            self.reject_length("string_length", f"{what} claims {length} bytes", offset=start)
        return length

    def _kept_value(self, what: str, length: int) -> str:
        raw = self._kept_bytes(what, length)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            # Old tools wrote names and licences in Latin-1, and llama.cpp looks at no encoding.
            return raw.decode("latin-1")

    def _kept_bytes(self, what: str, length: int) -> bytes:
        if length > self.allowance.kept_bytes:
            self.reject(
                "string_length",
                f"{what} has {length} bytes; all texts of a header together may have "
                f"{MAX_KEPT_BYTES}.",
                offset=self.position - 8,
            )
        self.allowance.kept_bytes -= length
        return self.take(length, what)

    def key(self, number: int) -> str:
        """The name of a metadata entry."""
        start = self.position
        key = self.text(f"key {number}", MAX_KEY_BYTES)
        if not key:
            self.reject("empty_key", f"key {number} is empty.", offset=start)
        return key

    def value(self, key: str) -> MetadataValue | SkimmedArray:
        """A typed value: a scalar, a small array as a tuple, or the position of a skipped array."""
        start, name = self.position, shown(key)
        kind = self.u32(f"the type of {name}")
        if kind == _ARRAY:
            return self._array(name, kept=not key.startswith("tokenizer."))
        if kind == _STRING:
            return self._text_value(name)
        if kind not in _NAMES:
            self.reject(
                "value_type", f"{name} has value type {kind}; 0 to 12 are known.", offset=start
            )
        value = self._number(_SCALARS[kind], f"the value of {name}")
        return value != 0 if kind == _BOOL else value

    def _text_value(self, name: str) -> str | SkimmedArray:
        what = f"the value of {name}"
        length = self._length(what)
        if length <= MAX_KEPT_TEXT_BYTES:
            return self._kept_value(what, length)
        start = self.position
        self.position = start + length
        return SkimmedArray("u8", length, start, length)

    def _array(self, name: str, *, kept: bool) -> MetadataValue | SkimmedArray:
        start = self.position
        kind = self.u32(f"the element type of {name}")
        if kind == _ARRAY:
            self.reject(
                "array_nesting",
                f"{name} is an array of arrays, which llama.cpp does not load.",
                offset=start,
            )
        if kind not in _NAMES:
            self.reject(
                "array_type",
                f"{name} has elements of type {kind}; 0 to 12 without 9 are known.",
                offset=start,
            )
        count = self.u64(f"the length of {name}")
        if kind == _STRING:
            return self._text_array(name, count, kept=kept)
        return self._number_array(name, kind, count, kept=kept)

    def _check_count(self, name: str, count: int, least_bytes: int) -> None:
        if count * least_bytes > self.remaining:
            self.reject_length(
                "array_length",
                f"{name} claims {count} elements of at least {least_bytes} bytes",
                offset=self.position - 8,
            )

    def _keep(self, name: str, count: int) -> None:
        if count > self.allowance.kept_elements:
            self.reject(
                "array_length",
                f"{name} has {count} elements; all short arrays of a header together may have "
                f"{MAX_KEPT_ELEMENTS}.",
                offset=self.position - 8,
            )
        self.allowance.kept_elements -= count

    def _number_array(
        self, name: str, kind: int, count: int, *, kept: bool
    ) -> MetadataValue | SkimmedArray:
        unpacker = _SCALARS[kind]
        self._check_count(name, count, unpacker.size)
        start, n_bytes = self.position, count * unpacker.size
        if count > MAX_KEPT_NUMBERS or not kept:
            self.position = start + n_bytes
            return SkimmedArray(_NAMES[kind], count, start, n_bytes)
        self._keep(name, count)
        raw = self.take(n_bytes, name)
        values = struct.unpack(f"<{count}{_FORMATS[kind]}", raw)
        return tuple(value != 0 for value in values) if kind == _BOOL else values

    def _text_array(self, name: str, count: int, *, kept: bool) -> MetadataValue | SkimmedArray:
        self._check_count(name, count, 8)
        if count > self.allowance.texts:
            self.reject(
                "array_length",
                f"{name} has {count} texts; a header may have {MAX_TEXTS}.",
                offset=self.position - 8,
            )
        self.allowance.texts -= count
        start = self.position
        if count <= MAX_KEPT_TEXTS and kept:
            self._keep(name, count)
            return tuple(self._element(f"element {i} of {name}") for i in range(count))
        self._skip_texts(name, count)
        return SkimmedArray("string", count, start, self.position - start)

    def _element(self, what: str) -> str:
        start = self.position
        length = self._length(what)
        if length > MAX_KEPT_TEXT_BYTES:
            self.reject(
                "string_length",
                f"{what} has {length} bytes; at most {MAX_KEPT_TEXT_BYTES} are allowed.",
                offset=start,
            )
        return self._kept_value(what, length)

    def _skip_texts(self, name: str, count: int) -> None:
        left = count
        while left:
            self.need(8, f"the length of element {count - left} of {name}")
            moved, walked = walk_strings(self._source.rest(self.position), left)
            if moved > self.remaining:
                self._blame_text(name, count - left)
            self.position += moved
            left -= walked

    def _blame_text(self, name: str, first: int) -> NoReturn:
        """Find and reject the text that passes the file's end, because the fast walk does not check."""
        while True:
            length = self._length(f"element {first} of {name}")
            self.position += length
            first += 1
