"""About how many bytes a record keeps in memory while it waits: the queues are bounded by their sum."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from sys import getsizeof
from typing import Any, Final

from traces.records import OwnSpan, RequestRecord

SMALL_BYTES: Final = 1024
"""Records of no more bytes are bounded by their number alone, which costs a caller nothing."""

_FLAT: Final = frozenset((str, bytes, bytearray, bool, int, float, type(None)))
_ITEMS: Final = 32
"""So many of a list are looked at, at both of its ends; they stand for all of it."""
_MOST_LOOKED_AT: Final = 512
_EMPTY: Final = 64
_MOST: Final = 2**62


def bytes_of_span(span: OwnSpan, characters: int) -> int:
    """Of a span with at most so many characters in its attributes: only where these are many it counts."""
    few = characters + len(span.name)
    if few <= SMALL_BYTES and not span.failed:
        return few
    return getsizeof(span.name) + sum(
        getsizeof(key) + getsizeof(value) for key, value in span.attributes.items()
    )


def bytes_of_request(record: RequestRecord) -> int:
    """Of a request. What is not looked at here are names."""
    texts = (record.prompt or "", record.answer or "", record.error_message, record.waited_for)
    few = sum(map(str.__sizeof__, texts))
    return few + held_bytes(record.attributes) if record.attributes else few


def held_bytes(value: object) -> int:
    """Of a value of any form: texts, lists, tables and dataclasses. Never raises."""
    total, looked = 0.0, 0
    waiting: list[tuple[object, float]] = [(value, 1.0)]
    # What changes meanwhile, or whose own code fails, has what was counted until then.
    with suppress(Exception):
        while waiting and looked < _MOST_LOOKED_AT:
            one, times = waiting.pop()
            looked += 1
            if type(one) in _FLAT:
                total += times * getsizeof(one)
                continue
            parts, count = _parts(one)
            total += times * (_EMPTY + count * 8)
            waiting += [(part, times * count / len(parts)) for part in parts]
    return int(min(total, _MOST))


def _parts(value: Any) -> tuple[Sequence[object], int]:
    """The first parts of a value, and how many there are."""
    if isinstance(value, dict):
        return [*islice(value, _ITEMS), *islice(value.values(), _ITEMS)], 2 * len(value)
    if isinstance(value, list | tuple) and len(value) > _ITEMS:
        half = _ITEMS // 2
        return [*value[:half], *value[-half:]], len(value)
    if isinstance(value, list | tuple | set | frozenset):
        return list(islice(value, _ITEMS)), len(value)
    if isinstance(value, str):
        return [str.__str__(value)], 1
    fields = [getattr(value, name) for name in getattr(value, "__dataclass_fields__", ())]
    return fields, len(fields)
