"""Type checks for foreign JSON: each function returns the value, or raises an error that shows it.

`int("12")`, `bool(1)` and `float(True)` accept values of other types. Here the only conversion is from an
int to the equal float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

MOST_BYTES: Final = 1 << 50
"""No device has a pebibyte."""


def whole(value: object, least: int = 0, most: int = MOST_BYTES) -> int:
    """An int between two bounds.

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{_short(value)} is no whole number from {least} to {most}")
    return value


def real(value: object, least: float = 0.0, most: float = 1e15) -> float:
    """A finite number between two bounds.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{_short(value)} is no number")
    if not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"{_short(value)} is not from {least:g} to {most:g}")
    return float(value)


def text(value: object) -> str:
    """A string.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{_short(value)} is no text")
    return value


def table(value: object) -> Mapping[str, Any]:
    """An object.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{_short(value)} is no object")
    return value


def rows(value: object) -> Sequence[Any]:
    """A list, or the tuple that is written as one.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{_short(value)} is no list")
    return value


def _short(value: object) -> str:
    said = repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
    return said if len(said) <= 40 else f"{said[:37]}..."
