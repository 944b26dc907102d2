"""Stepping over many length-prefixed texts at once.

Where the next text starts is known only from the length of this one, and a Python loop pays for
each step. But tokens are shorter than 256 bytes, so a length field is a byte with seven zero bytes
behind it, and texts hardly hold such runs: numpy finds all the candidates of a chunk, and the chain
"start + 8 + length = next start" is then checked for all of them. What passes is exactly what the
loop would have walked; where the chain breaks, the loop takes over for a while.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

_LENGTH: Final = struct.Struct("<Q")
_CHUNK_BYTES: Final = 1 << 19
_STEPS_AFTER_BREAK: Final = 1024
_MAX_BREAKS: Final = 64


def walk_strings(view: memoryview, position: int, count: int) -> int | None:
    """The position behind `count` length-prefixed texts, or `None` if they lead out of the view."""
    breaks = 0
    while count > _STEPS_AFTER_BREAK and breaks < _MAX_BREAKS:
        step, walked = _walk_chunk(view[position : position + _CHUNK_BYTES], count)
        position += step
        count -= walked
        if walked < _STEPS_AFTER_BREAK:
            breaks += 1
            after = _walk_each(view, position, min(count, _STEPS_AFTER_BREAK))
            if after is None:
                return None
            count -= min(count, _STEPS_AFTER_BREAK)
            position = after
    return _walk_each(view, position, count)


def _walk_each(view: memoryview, position: int, count: int) -> int | None:
    length_at = _LENGTH.unpack_from
    try:
        for _ in range(count):
            position += 8 + length_at(view, position)[0]
    except (struct.error, OverflowError):
        return None
    return position if position <= len(view) else None


def _walk_chunk(chunk: memoryview, count: int) -> tuple[int, int]:
    """How many bytes, and how many texts, the checked chain from the chunk's start covers."""
    data = np.frombuffer(chunk, np.uint8)
    zero = data == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    starts = np.flatnonzero(four[1:-3] & four[4:])
    if not starts.size or starts[0] != 0:
        return 0, 0
    ends = starts + 8 + data[starts]
    broken = np.flatnonzero(ends[:-1] != starts[1:])
    walked = min(int(broken[0]) + 1 if broken.size else starts.size, count)
    return int(ends[walked - 1]), walked
