"""Shared memory that Python programs leave behind when they are killed: named files below `/dev/shm`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from backends.machine.processes import all_pids, mapped_files

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where the kernel keeps it
_MADE: Final = ("psm_*", "sem.mp-*")
"""What `multiprocessing` calls the segments and semaphores that it makes."""


def segments_of(pids: Iterable[int]) -> set[str]:
    """The names of the segments and semaphores that these processes have mapped now."""
    # Their paths would not do: a semaphore is mapped under a name that it has only while it is made.
    mapped = set().union(*map(mapped_files, pids))
    return {name for name, file in _there() if file in mapped}


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


def _there() -> Iterator[tuple[str, tuple[int, int]]]:
    """Every segment that is there: its name, its device and inode."""
    for pattern in _MADE:
        for path in _FOLDER.glob(pattern):
            try:
                found = path.stat()
            except OSError:
                continue
            yield path.name, (found.st_dev, found.st_ino)
