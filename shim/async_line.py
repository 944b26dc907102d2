"""Connections to the keeper for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

from shim.line import Hello, Line, Lines
from shim.wire import MAX_LINE_BYTES, keeper_gone


class StreamChannel:
    """The lines of an event loop's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def write(self, line: bytes) -> None:
        """Send a line, without waiting until it is sent."""
        self._writer.write(line)

    async def read(self) -> bytes:
        """The next line, as soon as it is whole."""
        try:
            line = await self._reader.readline()
        except OSError as exc:
            raise keeper_gone() from exc
        if not line.endswith(b"\n"):
            raise keeper_gone()
        return line

    async def arrived(self) -> list[bytes]:
        """The lines that are here; waits for one loop turn."""
        found: list[bytes] = []
        with contextlib.suppress(TimeoutError):
            # A line that is broken off stays in the reader's buffer.
            async with asyncio.timeout(0):
                while True:
                    found.append(await self.read())
        return found

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class LoopLines(Lines):
    """Idle connections, by event loop. Safe after `fork()`."""

    def __init__(self, connect: Callable[[], socket.socket], hello: Hello) -> None:
        super().__init__(hello)
        self._connect = connect
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[Line]] = (
            WeakKeyDictionary()
        )
        self._pid = os.getpid()

    @property
    def idle(self) -> deque[Line]:
        """The running loop's idle connections."""
        if self._pid != os.getpid():
            self._by_loop, self._pid = WeakKeyDictionary(), os.getpid()
        return self._by_loop.setdefault(asyncio.get_running_loop(), deque())

    async def _open(self) -> StreamChannel:
        sock = await asyncio.to_thread(self._connect)
        return StreamChannel(*await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES))
