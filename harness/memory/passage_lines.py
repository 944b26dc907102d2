"""Passages as a file has them, one a line: JSON with `text`, and perhaps `metadata` and `quality`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from harness.memory.passages import Passage
from shim import InvalidRequest

_KEYS: Final = frozenset(["text", "metadata", "quality"])


def batches_of(file: Path, lines: Iterable[bytes], most: int) -> Iterator[list[Passage]]:
    """The passages of lines, so many at a time; those before a line that is none come before its error.

    Raises:
        InvalidRequest: a line is no passage; the error names file and line.
    """
    batch = list[Passage]()
    for number, line in enumerate(lines, 1):
        try:
            batch.append(_from_line(file, number, line))
        except InvalidRequest:
            yield batch
            raise
        if len(batch) == most:
            yield batch
            batch = []
    yield batch


def _from_line(file: Path, number: int, line: bytes) -> Passage:
    try:
        found = json.loads(line)
        if not isinstance(found, dict) or "text" not in found:
            raise InvalidRequest('it has no "text".')
        if strange := found.keys() - _KEYS:
            raise InvalidRequest(f"it has {', '.join(sorted(strange))}.")
        return Passage(**found)
    except (ValueError, RecursionError, InvalidRequest) as error:
        why = error.message if isinstance(error, InvalidRequest) else str(error)
        raise InvalidRequest(
            f"Line {number} of {file} cannot be remembered: {why}",
            hint='A line is an object as {"text": "...", "metadata": {}, "quality": 1}.',
            file=str(file),
            line=number,
        ) from error
