"""Reads what an engine writes: line by line while it loads, then at most ten times a second."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from backends.engine_process.log import LogRing

PAUSE_S: Final = 0.1
"""Between two readings once the model is loaded.

A dozen lines are written for each request. Waking up for each would cost the keeper more than the request.
A pipe holds the lines of hundreds of requests; an engine writes them from a thread of its own.
"""
_CHUNK_BYTES: Final = 1 << 16
_MOST_CHUNKS: Final = 16


class LogReader:
    """The reading end of a process's log, and the ring that its lines go to.

    Args:
        fd: a pipe; closed here.
        ring: gets what is read.
    """

    def __init__(self, fd: int, ring: LogRing) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._pause: asyncio.TimerHandle | None = None
        self._pauses = True
        self._loop.add_reader(fd, self._readable)

    def up_to_now(self) -> LogRing:
        """The ring, with all that the process has written, up to what a pipe can hold."""
        for _ in range(_MOST_CHUNKS):
            if self._ended.done() or self._read() < _CHUNK_BYTES:
                break
        return self._ring

    async def until_end(self, limit_s: float) -> None:
        """Read the rest without pauses, up to its end or for so long, and close the pipe."""
        self._pauses = False
        self._go_on()
        await asyncio.wait({self._ended}, timeout=limit_s)
        self.up_to_now()
        self.close()

    def close(self) -> None:
        """Read no more. Idempotent."""
        if not self._ended.done():
            self._ended.set_result(None)
            self._ring.feed(b"\n")
            self._loop.remove_reader(self._fd)
            os.close(self._fd)

    def _readable(self) -> None:
        n_bytes = self._read()
        pauses = self._pauses and self._ring.said_ready
        if pauses and n_bytes < _CHUNK_BYTES and not self._ended.done():
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if not self._ended.done():
            self._loop.add_reader(self._fd, self._readable)

    def _read(self) -> int:
        """Take in what is there, up to a chunk; returns how many bytes."""
        try:
            chunk = os.read(self._fd, _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return 0
        self._ring.feed(chunk)
        return len(chunk)
