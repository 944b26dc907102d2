"""The vectors of an embeddings answer, in the forms in which servers send them."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from backends.openai.answers.fields import WrongField, a_list

Vector = tuple[float, ...]
_NUMBERS: Final = {int, float}


def read_vectors(rows: Sequence[Mapping[str, Any]]) -> tuple[Vector, ...]:
    """The vectors of the rows, in the order of their `index`; as sent where it is missing or all the same.

    Raises:
        WrongField: a row holds no vector of numbers, or the lengths or the indices differ in kind.
    """
    vectors = tuple(_vector(row.get("embedding")) for row in _in_order(rows))
    lengths = {len(vector) for vector in vectors}
    if len(lengths) > 1:
        raise WrongField("an embedding", [], f"one of {max(lengths)} numbers")
    return vectors


def _in_order(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    indices = [row.get("index") for row in rows]
    numbers = [index for index in indices if type(index) is int]
    if len(numbers) == len(rows) == len(set(numbers)):
        return sorted(rows, key=lambda row: int(row["index"]))
    same = all(index == indices[0] for index in indices)
    if not same or not (indices[0] is None or numbers):
        raise WrongField("index of an embedding", indices[0], "a number for each text")
    return rows


def _vector(value: Any) -> Vector:
    if isinstance(value, str):
        return _decoded(value)
    found = a_list(value, "an embedding")
    if len(found) == 1 and isinstance(found[0], list):
        found = found[0]
    if not found or not set(map(type, found)) <= _NUMBERS:
        raise WrongField("an embedding", value, "a list of numbers")
    return tuple(map(float, found))


def _decoded(text: str) -> Vector:
    """Little-endian 32-bit floats in base64: `encoding_format="base64"`, which some servers always send."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw or len(raw) % 4:
        raise WrongField("an embedding", text, "a list of numbers")
    vector: Vector = struct.unpack(f"<{len(raw) // 4}f", raw)
    if not all(map(math.isfinite, vector)):
        raise WrongField("an embedding", text, "a list of finite numbers")
    return vector
