"""The page cache: what of a file already lies in RAM, and how to bring it there or drop it.

A staged file (in the page cache) loads at memory speed, a cold one at the disk's. Linux only.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from budget.errors import BadModelFile

CHUNK_BYTES = 8 << 20
"""What is staged at a time."""

_IN_CORE = bytes(byte & 1 for byte in range(256))
"""Only the lowest bit of what `mincore` says of a page is defined."""


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise BadModelFile(
            f"{path} cannot be read: {exc.strerror}.",
            hint="Check the path and its permissions.",
            file=str(path),
        ) from exc


def resident_fraction(path: Path) -> float:
    """The share of a file's pages that lies in the page cache, 0 to 1 (1 for an empty file).

    Asks `mincore(2)` over a private mapping; no page is touched by asking.

    Raises:
        BadModelFile: the file cannot be read.
    """
    fd = _open(path)
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            return 1.0
        # A private writable mapping is what ctypes accepts as a buffer; nothing is ever written.
        with mmap.mmap(
            fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        ) as m:
            return _mincore(m, size)
    finally:
        os.close(fd)


def _mincore(mapping: mmap.mmap, size: int) -> float:
    pages = -(-size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    start = ctypes.c_char.from_buffer(mapping)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(ctypes.addressof(start))
        if libc.mincore(address, ctypes.c_size_t(size), vector) != 0:
            return 0.0
    finally:
        del start
    return bytes(vector).translate(_IN_CORE).count(1) / pages


def drop_from_page_cache(path: Path) -> None:
    """Make a file disk-cold (`POSIX_FADV_DONTNEED`); pages mapped by a process stay.

    Raises:
        BadModelFile: the file cannot be read.
    """
    fd = _open(path)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
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
