"""Skips many length-prefixed texts at once.

Where the next text starts is known only from the length of this one, and a Python loop pays for
each step. But tokens are shorter than 256 bytes, so a length field is a byte with seven zero bytes
behind it, and texts rarely hold such runs. numpy finds all the candidates of a chunk, and the chain
"start + 8 + length = next start" is then checked for all of them. The result is exactly that of the loop;
where the chain breaks, the loop takes over for a while.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

_LENGTH: Final = struct.Struct("<Q")
_CHUNK_BYTES: Final = 1 << 16
_STEPS_AFTER_BREAK: Final = 1024


def walk_strings(view: memoryview, count: int) -> tuple[int, int]:
    """Step over at most `count` texts, as many as have their length in the view.

    Returns:
        The position behind the last one, which may lie far behind the view, and how many they were.
    """
    position = walked = 0
    steps = _STEPS_AFTER_BREAK
    while count - walked > _STEPS_AFTER_BREAK and position + 8 <= len(view):
        step, several = _walk_chunk(view[position : position + _CHUNK_BYTES], count - walked)
        position += step
        walked += several
        if several < _STEPS_AFTER_BREAK:
            # The more often the chain breaks, the longer the loop is used.
            position, several = _walk_each(view, position, min(count - walked, steps))
            walked += several
            steps *= 2
    position, several = _walk_each(view, position, count - walked)
    return position, walked + several


def _walk_each(view: memoryview, position: int, count: int) -> tuple[int, int]:
    length_at = _LENGTH.unpack_from
    walked = 0
    try:
        for walked in range(count):  # noqa: B007 - the count at the break is the answer
            position += 8 + length_at(view, position)[0]
    except (struct.error, OverflowError):
        return position, walked
    return position, count


def _walk_chunk(chunk: memoryview, count: int) -> tuple[int, int]:
    """The bytes and the number of texts that the checked chain from the chunk's start covers."""
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
