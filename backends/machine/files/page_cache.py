"""The page cache: how much of a file lies in RAM, reading it into RAM, and dropping it.

A staged file (in the page cache) loads at memory speed, a cold one at the disk's. Linux only.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from backends.machine.files.whole_files import regular_descriptor
from budget.errors import BadModelFile

CHUNK_BYTES = 8 << 20
"""The bytes that are staged at a time."""

_ASKED_BYTES: Final = 1 << 30
"""The bytes that are mapped for one question: a quarter of a million pages."""


def _unreadable(path: Path, why: str) -> BadModelFile:
    return BadModelFile(
        f"{path} cannot be read: {why}.",
        hint="Check the path and its permissions.",
        file=str(path),
    )


def _open(path: Path) -> int:
    try:
        return regular_descriptor(path)
    except (OSError, ValueError) as exc:
        raise _unreadable(path, getattr(exc, "strerror", None) or str(exc)) from exc


def resident_fraction(path: Path) -> float | None:
    """The share of a file's pages that lies in the page cache, 0 to 1 (1 for an empty file).

    None where the kernel does not say: of a file that the caller neither owns nor may write to,
    `mincore(2)` claims that all of it is there (since Linux 5.2), and some file systems cannot map.
    No page is touched by asking.

    Raises:
        BadModelFile: the file cannot be read.
    """
    fd = _open(path)
    try:
        status = os.fstat(fd)
        fraction = _fraction(fd, status.st_size)
        is_known = status.st_uid == os.geteuid() or os.access(path, os.W_OK, effective_ids=True)
        return fraction if is_known or fraction != 1.0 else None
    finally:
        os.close(fd)


def can_be_mapped(path: Path) -> bool:
    """Whether an engine can map a file; some file systems refuse."""
    fd = _open(path)
    try:
        # No page is read; it only has to be allowed by the kernel.
        with mmap.mmap(fd, 1, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ):
            return True
    except (OSError, ValueError):
        return False
    finally:
        os.close(fd)


def missing_bytes(path: Path) -> int:
    """The bytes of a file that are not known to lie in the page cache; all of them where it is unknown.

    Raises:
        BadModelFile: the file cannot be read.
    """
    fraction = resident_fraction(path)
    try:
        n_bytes = path.stat().st_size
    except OSError as exc:
        raise _unreadable(path, str(exc.strerror)) from exc
    return n_bytes if fraction is None else round((1.0 - fraction) * n_bytes)


def _fraction(fd: int, n_bytes: int) -> float | None:
    if n_bytes == 0:
        return 1.0
    resident = 0
    for offset in range(0, n_bytes, _ASKED_BYTES):
        found = _resident_pages(fd, offset, min(_ASKED_BYTES, n_bytes - offset))
        if found is None:
            return None
        resident += found
    return resident / -(-n_bytes // mmap.PAGESIZE)


def _resident_pages(fd: int, offset: int, n_bytes: int) -> int | None:
    """How many of these pages are in RAM; None where the file cannot be mapped, or shrank."""
    pages = np.zeros(-(-n_bytes // mmap.PAGESIZE), np.uint8)
    try:
        with mmap.mmap(
            fd, n_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=offset
        ) as mapped:
            asked = np.frombuffer(mapped, np.uint8)
            failed = ctypes.CDLL(None).mincore(
                ctypes.c_void_p(asked.ctypes.data),
                ctypes.c_size_t(n_bytes),
                ctypes.c_void_p(pages.ctypes.data),
            )
            del asked
    except (OSError, ValueError):
        return None
    # Only the lowest bit of what `mincore` says of a page is defined.
    return None if failed else int(np.count_nonzero(pages & 1))


def drop_from_page_cache(path: Path) -> None:
    """Make a file disk-cold (`POSIX_FADV_DONTNEED`); pages mapped by a process stay.

    Raises:
        BadModelFile: the file cannot be read.
    """
    fd = _open(path)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as exc:
        raise _unreadable(path, str(exc.strerror)) from exc
    finally:
        os.close(fd)


async def stage_file(
    path: Path,
    *,
    rate_bytes_per_s: float | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> int:
    """Bring a file into the page cache, a bounded chunk at a time; returns its bytes.

    Each chunk is asked for with `POSIX_FADV_WILLNEED` and then read by a helper thread, so that a
    chunk counts only when it has arrived. Cancelling stops between two chunks.

    Args:
        path: the file.
        rate_bytes_per_s: upper bound of the reading rate; None reads as fast as the disk gives.
        on_progress: gets the fraction staged, 0 to 1, after each chunk.

    Raises:
        BadModelFile: the file cannot be read.
    """
    loop = asyncio.get_running_loop()
    fd = _open(path)
    try:
        size = os.fstat(fd).st_size
        began = loop.time()
        done = 0
        while done < size:
            await asyncio.shield(loop.run_in_executor(None, _read_chunk, os.dup(fd), done))
            done = min(size, done + CHUNK_BYTES)
            if on_progress is not None:
                on_progress(done / size)
            if rate_bytes_per_s is not None:
                await asyncio.sleep(max(0.0, began + done / rate_bytes_per_s - loop.time()))
        return size
    except OSError as exc:
        raise _unreadable(path, exc.strerror or str(exc)) from exc
    finally:
        os.close(fd)


def _read_chunk(fd: int, offset: int) -> None:
    """Read one chunk into a scratch buffer; owns (and closes) the descriptor it is given."""
    try:
        os.posix_fadvise(fd, offset, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
        end = offset + CHUNK_BYTES
        while offset < end:
            part = os.pread(fd, min(1 << 20, end - offset), offset)
            if not part:
                return
            offset += len(part)
    finally:
        os.close(fd)


def cached_fraction(files: Mapping[Path, int]) -> float | None:
    """The share of the files' bytes in the page cache; None where the kernel does not say."""
    total = sum(files.values())
    if total == 0:
        return 1.0
    cached = 0.0
    for path, size in files.items():
        fraction = resident_fraction(path)
        if fraction is None:
            return None
        cached += fraction * size
    return cached / total
