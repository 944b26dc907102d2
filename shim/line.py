"""A thread's connection to the keeper, and the pool of those that are idle."""

from __future__ import annotations

import os
import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from budget.errors import KeeperUnavailable
from shim.wire import Message, decode, encode, keeper_gone, outcome

Connect = Callable[[], socket.socket]
Hello = Callable[["KeeperLine"], None]


class KeeperLine:
    """One connection, used by one call at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._number = 0
        self.reused = False

    def ask(self, op: str, **fields: Any) -> Message:
        """Send an op and wait for its result; notices in between are dropped.

        Raises:
            KeeperUnavailable: the keeper is gone.
            KeepwarmError: the op's own error.
        """
        self._number += 1
        self._send({"op": op, "id": self._number, **fields})
        while True:
            message = self._read()
            if message.get("id") == self._number:
                return outcome(message)

    def tell(self, op: str, **fields: Any) -> None:
        """Send an op that is not answered.

        Raises:
            KeeperUnavailable: the keeper is gone.
        """
        self._send({"op": op, **fields})

    def notices(self) -> list[Message]:
        """What the keeper said without being asked since the last look; never waits.

        Raises:
            KeeperUnavailable: the keeper is gone.
        """
        try:
            chunk = self._sock.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as exc:
            raise keeper_gone() from exc
        if not chunk:
            raise keeper_gone()
        self._buffer += chunk
        found = []
        while (end := self._buffer.find(b"\n")) >= 0:
            found.append(decode(bytes(self._buffer[:end])))
            del self._buffer[: end + 1]
        return found

    def close(self) -> None:
        """End the connection; what it held at the keeper is back at once."""
        self._sock.close()

    def _send(self, message: Message) -> None:
        try:
            self._sock.sendall(encode(message))
        except OSError as exc:
            raise keeper_gone() from exc

    def _read(self) -> Message:
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                chunk = self._sock.recv(65536)
            except OSError as exc:
                raise keeper_gone() from exc
            if not chunk:
                raise keeper_gone()
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return decode(line)


class LinePool:
    """Idle connections of one process. Any thread may take and return one."""

    def __init__(self, connect: Connect, hello: Hello) -> None:
        self._connect = connect
        self._hello = hello
        self._idle: deque[KeeperLine] = deque()
        _POOLS.add(self)

    def take(self, *, fresh: bool = False) -> KeeperLine:
        """An idle connection, or a new one (always, when `fresh`).

        Raises:
            KeepwarmError: no keeper runs and none could be started, or it refuses this client.
        """
        if not fresh:
            try:
                line = self._idle.pop()
            except IndexError:
                pass
            else:
                line.reused = True
                return line
        line = KeeperLine(self._connect())
        try:
            self._hello(line)
        except BaseException:
            line.close()
            raise
        return line

    def give(self, line: KeeperLine) -> None:
        """Return a connection on which nothing is outstanding."""
        self._idle.append(line)

    def close(self) -> None:
        """Close every idle connection."""
        while self._idle:
            self._idle.pop().close()

    def ask(self, op: str, **fields: Any) -> Message:
        """One op on a pooled connection; retried once when an idle one turns out to be dead.

        Raises:
            KeepwarmError: as `KeeperLine.ask`.
        """
        line, result = self.ask_keeping(op, **fields)
        self.give(line)
        return result

    def ask_keeping(self, op: str, **fields: Any) -> tuple[KeeperLine, Message]:
        """As `ask`; the connection stays with the caller, who returns or closes it."""
        line = self.take()
        while True:
            try:
                return line, line.ask(op, **fields)
            except KeeperUnavailable:
                line.close()
                if not line.reused:
                    raise
                # The keeper that this connection led to is gone, and so is every other idle one.
                self.close()
                line = self.take(fresh=True)
            except Exception:
                self.give(line)
                raise
            except BaseException:
                # Interrupted while waiting: closing withdraws the request.
                line.close()
                raise


_POOLS: weakref.WeakSet[LinePool] = weakref.WeakSet()


def close_after_fork() -> None:
    """In a forked child: close the inherited connections, so that they end with the parent."""
    for pool in list(_POOLS):
        pool.close()


os.register_at_fork(after_in_child=close_after_fork)
