"""Refuses model files: the error names the failed check, its offset, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NoReturn

from budget.errors import BadModelFile

Check = Literal[
    "file",
    "changed",
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
"""The checks that reject a file. A `BadModelFile` has the failed one as its fact `check`."""

_MOST_SHOWN: Final = 120


def reject(path: Path, check: Check, what: str, *, offset: int, hint: str = "") -> NoReturn:
    """Raise a `BadModelFile` with its facts: `file`, `offset` (bytes) and `check`."""
    raise BadModelFile(
        f"{path}: {what}" if check == "file" else f"{path}: at byte {offset}: {what}",
        hint=hint or "Fetch or make the file again.",
        file=str(path),
        offset=offset,
        check=check,
    )


def shown(value: object) -> str:
    """A value of a file as a message quotes it: its `repr`, cut where it is long."""
    part = value[:_MOST_SHOWN] if isinstance(value, str | tuple) else value
    text = repr(part)
    if part is value and len(text) <= _MOST_SHOWN:
        return text
    return f"{text[:_MOST_SHOWN]}..."
