"""Connections to the keeper for threads: blocking sockets, and the flows over them made plain calls."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from backends.flows import run_blocking
from backends.machine.callers_errors import raise_callers
from budget.errors import KeeperUnavailable
from shim.wire.json_lines import Message, keeper_gone
from shim.wire.keeper_connection import ConnectionPool, Hello, KeeperConnection, OwnModels
from shim.wire.silence import bound, keeper_silent, peer_of

_CHUNK = 65536


class SocketChannel:
    """A socket's lines, for the thread that waits for them."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(None)  # whatever `socket.setdefaulttimeout` says
        self._sock = sock
        self._begun: list[bytes] = []
        """The beginning of a line that is not whole yet."""
        self._lines: deque[bytes] = deque()
        self._limits: dict[int, float] = {}
        self.is_gone = False

    async def send(self, line: bytes, limit_s: float) -> None:
        """Send the rest of a line; waits at most `limit_s` for a busy keeper."""
        if self._limits.get(socket.SO_SNDTIMEO) != limit_s:
            self._bound(socket.SO_SNDTIMEO, limit_s)
        try:
            self._sock.sendall(line)
        except BlockingIOError as exc:
            raise_callers(exc)
            raise self.silent(limit_s) from None
        except OSError as exc:
            raise_callers(exc)
            raise self._gone() from exc

    def send_now(self, line: bytes) -> int:
        """Send as much of a line as there is room for; returns how many bytes."""
        try:
            return self._sock.send(line, socket.MSG_DONTWAIT)
        except BlockingIOError as exc:
            raise_callers(exc)
            return 0
        except OSError as exc:
            raise_callers(exc)
            raise self._gone() from exc

    async def read(self, limit_s: float) -> bytes:
        """The next line, as soon as it is whole."""
        while not self._lines:
            if self._limits.get(socket.SO_RCVTIMEO) != limit_s:
                self._bound(socket.SO_RCVTIMEO, limit_s)
            if not self._receive(0):
                raise self.silent(limit_s)
        return self._lines.popleft()

    def arrived(self) -> list[bytes]:
        """The received lines, without waiting."""
        self._receive(socket.MSG_DONTWAIT)
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def interrupt(self) -> None:
        """End the connection from any thread; a thread that waits on it finds it closed."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; in a forked child, its copy alone."""
        self._sock.close()

    def _bound(self, option: int, limit_s: float) -> None:
        try:
            bound(self._sock, option, limit_s)
        except OSError as exc:  # closed: the next step says so
            raise_callers(exc)
        self._limits[option] = limit_s

    def _receive(self, flags: int) -> bool:
        """Receive the available bytes; returns whether there were any."""
        try:
            chunk = self._sock.recv(_CHUNK, flags)
        except BlockingIOError as exc:
            raise_callers(exc)
            return False
        except OSError as exc:
            raise_callers(exc)
            raise self._gone() from exc
        if not chunk:
            raise self._gone()
        first, *rest = chunk.split(b"\n")
        self._begun.append(first)
        for following in rest:
            self._lines.append(b"".join(self._begun))
            self._begun = [following]
        return True

    def _gone(self) -> KeeperUnavailable:
        self.is_gone = True
        return keeper_gone()

    def silent(self, waited_s: float) -> KeeperUnavailable:
        """The error of a keeper that does not read, or says nothing."""
        return keeper_silent(*peer_of(self._sock), waited_s)


class ThreadConnectionPool(ConnectionPool):
    """Connections of any thread."""

    async def _connect(self) -> SocketChannel:
        return SocketChannel(self._new_socket())


class BlockingConnection:
    """A thread's connection: each method runs that of `KeeperConnection`, and raises its errors."""

    def __init__(self, flows: KeeperConnection) -> None:
        self.flows = flows

    @property
    def is_gone(self) -> bool:
        """Whether the keeper ended (True), or is only silent."""
        return self.flows.is_gone

    @property
    def is_usable(self) -> bool:
        """Whether no op failed on it."""
        return self.flows.is_usable

    def ask(self, op: str, **fields: Any) -> Message:
        """Send an op and wait for its result."""
        return run_blocking(self.flows.ask(op, **fields))

    def tell(self, op: str, **fields: Any) -> None:
        """Send an op that is not answered."""
        self.flows.tell(op, **fields)

    def close(self) -> None:
        """End the connection, and with it everything that it held at the keeper."""
        self.flows.close()


class BlockingPool:
    """A thread's way to the keeper: each method runs the same method of `flows`, and raises its errors."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        hello: Hello,
        models: OwnModels | None = None,
    ) -> None:
        self.flows = ThreadConnectionPool(connect, hello, models)

    def new(self) -> BlockingConnection:
        """A new connection."""
        return BlockingConnection(run_blocking(self.flows.new()))

    def ask(self, op: str, **fields: Any) -> Message:
        """One op on a pooled connection; asked once more when the keeper had ended or ends meanwhile."""
        return run_blocking(self.flows.ask(op, **fields))

    def ask_keeping(self, op: str, **fields: Any) -> tuple[BlockingConnection, Message]:
        """As `ask`; the caller keeps the connection, and has to return or close it."""
        connection, answer = run_blocking(self.flows.ask_keeping(op, **fields))
        return BlockingConnection(connection), answer

    def give(self, connection: BlockingConnection) -> None:
        """Return a connection on which nothing is outstanding."""
        self.flows.give(connection.flows)

    def close(self) -> None:
        """Close every idle connection, and end those in use."""
        self.flows.close()
