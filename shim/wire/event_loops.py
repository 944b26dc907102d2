"""Connections to the keeper for asyncio. An idle one belongs to no loop, and stays after a loop's end."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

from backends.machine.bounded_questions import in_own_thread
from shim.wire.keeper_connection import ConnectionPool
from shim.wire.threads import SocketChannel


class LoopChannel(SocketChannel):
    """A socket's lines, for tasks of any event loop."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        sock.settimeout(0.0)

    async def send(self, line: bytes, limit_s: float) -> None:
        """Send the rest of a line; waits at most `limit_s` for a busy keeper."""
        loop = asyncio.get_running_loop()
        while line:
            await _until_ready(loop, loop.add_writer, loop.remove_writer, self._sock, limit_s)
            sent = self.send_now(line)
            if not sent:
                raise self.silent(limit_s)
            line = line[sent:]

    async def read(self, limit_s: float) -> bytes:
        """The next line, as soon as it is whole."""
        loop = asyncio.get_running_loop()
        while not self._lines:
            await _until_ready(loop, loop.add_reader, loop.remove_reader, self._sock, limit_s)
            # Looked at whatever ended the wait: after a stop of this process the time is over, and the
            # answer is here.
            if not self._receive(0):
                raise self.silent(limit_s)
        return self._lines.popleft()


async def _until_ready(
    loop: asyncio.AbstractEventLoop,
    watch: Callable[..., object],
    unwatch: Callable[..., object],
    sock: socket.socket,
    limit_s: float,
) -> None:
    """Return when a socket can be read or written, or when the time is over."""
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    fd = sock.fileno()
    if fd < 0:
        return
    watch(fd, wake)
    timer = loop.call_later(limit_s, wake)
    try:
        await ready
    finally:
        timer.cancel()
        unwatch(fd)


class LoopConnectionPool(ConnectionPool):
    """Connections of any event loop."""

    async def _connect(self) -> LoopChannel:
        # Starting a keeper may take long. No loop's end waits for this thread, as it would for one of its
        # executor's.
        given_up = threading.Event()

        def connect() -> socket.socket:
            sock = self._new_socket()
            if given_up.is_set():
                sock.close()
            return sock

        try:
            return LoopChannel(await in_own_thread(connect))
        except BaseException:
            given_up.set()
            raise
