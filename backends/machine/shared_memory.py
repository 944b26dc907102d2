"""Shared memory that Python programs leave behind when they are killed: named files below `/dev/shm`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from backends.machine.processes import all_pids, mapped_files

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where the kernel keeps it
_SEGMENT: Final = re.compile(rf"{_FOLDER}/(psm_[0-9a-f]+|sem\.mp-\w+)")
"""The paths of the segments and semaphores that `multiprocessing` makes."""


def segments_of(pids: Iterable[int]) -> set[str]:
    """The names of the segments and semaphores that these processes have mapped now."""
    paths = (path for pid in pids for path in mapped_files(pid))
    return {found[1] for path in paths if (found := _SEGMENT.fullmatch(path))}


def remove_segments(names: Iterable[str]) -> list[str]:
    """Remove segments whose processes have ended; returns the names of those that were still there.

    One that another process has mapped stays, because it is not theirs alone.
    """
    left = {name for name in names if (_FOLDER / name).exists()}
    if not left:
        return []
    removed = []
    for name in sorted(left - segments_of(all_pids())):
        try:
            (_FOLDER / name).unlink()
        except OSError:
            continue
        removed.append(name)
    return removed
