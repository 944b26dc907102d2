"""The start of a model file, read through a window that moves: never mapped.

A mapped file that is truncated while it is read kills the whole process (SIGBUS), and some file systems
cannot map at all. With `pread`, missing bytes are a `BadModelFile` like any other damage.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from backends.gguf.checks import reject
from backends.machine.files.in_folder import in_folder

WINDOW_BYTES: Final = 1 << 18

ReadInto = Callable[[memoryview, int], int]
"""Fills a buffer from an offset of the file; returns the bytes that were there."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of a regular file and its status; a FIFO or a folder in its place is refused at once.

    Raises:
        BadModelFile: it cannot be opened, is not a regular file, or is empty.
    """
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        reject(path, "file", f"cannot be opened: {reason}.", offset=0, hint="Check the path.")
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            folder = stat.S_ISDIR(status.st_mode)
            what = "is a folder." if folder else "is not a regular file."
            hint = in_folder(path) if folder else "Check the path."
            reject(path, "file", what, offset=0, hint=hint)
        if status.st_size == 0:
            reject(path, "file", "is empty.", offset=0)
        yield descriptor, status
    finally:
        os.close(descriptor)


class HeaderBytes:
    """The first bytes of a file, through one buffer.

    Args:
        path: the file, for error messages.
        n_bytes: how many bytes may be read.
        read_into: reads them.
    """

    def __init__(self, path: Path, n_bytes: int, read_into: ReadInto) -> None:
        self.n_bytes = n_bytes
        self._path = path
        self._read_into = read_into
        self._view = memoryview(bytearray(min(WINDOW_BYTES, n_bytes)))
        self._start = 0
        self._end = 0

    @classmethod
    def of(cls, path: Path, descriptor: int, n_bytes: int) -> HeaderBytes:
        """The first bytes of an open file."""

        def read_into(buffer: memoryview, offset: int) -> int:
            return os.preadv(descriptor, [buffer], offset)

        return cls(path, n_bytes, read_into)

    def at(self, position: int, n_bytes: int) -> tuple[memoryview, int]:
        """A view and an offset in it, where at least `n_bytes` (no more than a window) lie.

        The view is valid until the next call.
        """
        if position < self._start or position + n_bytes > self._end:
            self._move(position, n_bytes)
        return self._view, position - self._start

    def rest(self, position: int) -> memoryview:
        """The window's bytes from a position on, at least eight; valid until the next call."""
        view, offset = self.at(position, 8)
        return view[offset : self._end - self._start]

    def copy(self, position: int, n_bytes: int) -> bytes:
        """Any number of bytes."""
        if n_bytes <= len(self._view):
            view, offset = self.at(position, n_bytes)
            return bytes(view[offset : offset + n_bytes])
        return b"".join(self.pieces(position, n_bytes))

    def pieces(self, position: int, n_bytes: int) -> Iterator[bytes]:
        """Any number of bytes, a window at a time."""
        end = position + n_bytes
        while position < end:
            piece = self.copy(position, min(len(self._view), end - position))
            yield piece
            position += len(piece)

    def _move(self, position: int, n_bytes: int) -> None:
        self._start, self._end = position, position
        until = position + min(len(self._view), self.n_bytes - position)
        while self._end < until:
            free = self._view[self._end - position : until - position]
            try:
                count = self._read_into(free, self._end)
            except OSError as error:
                reason = f"cannot be read: {error.strerror}."
                reject(self._path, "file", reason, offset=position, hint="Check its disk.")
            if count == 0:
                break
            self._end += count
        if position + n_bytes > self._end:
            reject(
                self._path,
                "changed",
                f"the file was cut to {self._end} bytes while its header was read.",
                offset=self._end,
                hint="It is being written: ask again when it is whole.",
            )
