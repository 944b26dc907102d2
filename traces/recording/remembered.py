"""What a run remembers of its past, in so little memory that it may last for days."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, TypeVar

REMEMBERED: Final = 4096
"""Loads, evictions, slices that may still get an arrow: of more of one kind the oldest is forgotten."""

_Key = TypeVar("_Key", bound=Hashable)
_Kept = TypeVar("_Kept")


def remember(kept: OrderedDict[_Key, _Kept], key: _Key, value: _Kept) -> _Kept:
    """Keep a value, which is returned."""
    kept[key] = value
    if len(kept) > REMEMBERED:
        kept.popitem(last=False)
    return value
