"""Connections to the keeper for threads: blocking sockets, and the flows over them made plain calls."""

from __future__ import annotations

import os
import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from backends.flows import run_blocking
from shim.line import Hello, Line, Lines
from shim.wire import Message, keeper_gone


class SocketChannel:
    """A blocking socket's lines."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def write(self, line: bytes) -> None:
        """Send a line."""
        try:
            self._sock.sendall(line)
        except OSError as exc:
            raise keeper_gone() from exc

    async def read(self) -> bytes:
        """The next line, as soon as it is whole."""
        while (line := self._whole_line()) is None:
            self._receive()
        return line

    async def arrived(self) -> list[bytes]:
        """The lines that are here; none is waited for."""
        self._receive(socket.MSG_DONTWAIT)
        lines: list[bytes] = []
        while (line := self._whole_line()) is not None:
            lines.append(line)
        return lines

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _receive(self, flags: int = 0) -> None:
        try:
            chunk = self._sock.recv(65536, flags)
        except BlockingIOError:
            # Nothing is here, and the caller does not wait.
            return
        except OSError as exc:
            raise keeper_gone() from exc
        if not chunk:
            raise keeper_gone()
        self._buffer += chunk

    def _whole_line(self) -> bytes | None:
        end = self._buffer.find(b"\n") + 1
        if end == 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line


class ThreadLines(Lines):
    """Idle connections of one process. Any thread may take and return one."""

    def __init__(self, connect: Callable[[], socket.socket], hello: Hello) -> None:
        super().__init__(hello)
        self._connect = connect
        self._idle: deque[Line] = deque()
        _ALL.add(self)

    @property
    def idle(self) -> deque[Line]:
        """The process's idle connections."""
        return self._idle

    async def _open(self) -> SocketChannel:
        return SocketChannel(self._connect())


_ALL: weakref.WeakSet[ThreadLines] = weakref.WeakSet()


def close_after_fork() -> None:
    """In a forked child: close the inherited connections, so that they end with the parent."""
    for lines in list(_ALL):
        lines.close()


os.register_at_fork(after_in_child=close_after_fork)


class KeeperLine:
    """A thread's connection. Each call is that of the `Line`, and raises what that raises."""

    def __init__(self, flows: Line) -> None:
        self._flows = flows

    def ask(self, op: str, **fields: Any) -> Message:
        """Send an op and wait for its result."""
        return run_blocking(self._flows.ask(op, **fields))

    def tell(self, op: str, **fields: Any) -> None:
        """Send an op that is not answered."""
        self._flows.tell(op, **fields)

    def close(self) -> None:
        """End the connection; what it held at the keeper is back at once."""
        self._flows.close()


class LinePool:
    """A thread's way to the keeper. Each call is that of its `flows`, and raises what that raises."""

    def __init__(self, connect: Callable[[], socket.socket], hello: Hello) -> None:
        self.flows = ThreadLines(connect, hello)

    def take(self, *, fresh: bool = False) -> KeeperLine:
        """An idle connection, or a new one (always, when `fresh`)."""
        return KeeperLine(run_blocking(self.flows.take(fresh=fresh)))

    def ask(self, op: str, **fields: Any) -> Message:
        """One op on a pooled connection; retried once when an idle one turns out to be dead."""
        return run_blocking(self.flows.ask(op, **fields))

    def close(self) -> None:
        """Close every idle connection."""
        self.flows.close()
