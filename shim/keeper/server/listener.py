"""The keeper's socket: private, watched, and bounded in the number of connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import stat
from pathlib import Path
from typing import Final, Protocol

from backends.machine.files.folders import (
    check_socket_path,
    remove_own_socket,
    sockets_are_private,
)
from backends.machine.processes import open_files
from budget.errors import ConfigError, QueueFull
from shim.keeper.server.connection import Connection
from shim.wire.json_lines import encode

LOG = logging.getLogger("keepwarm.keeper")

BACKLOG: Final = 1024
ACCEPTED_A_TURN: Final = 64
PAUSE_S: Final = 1.0
COUNTED_EVERY_S: Final = 1.0
"""How often the descriptors of this process are counted at most."""
MOST_CONNECTIONS: Final = 8192
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def connection_limit(others: int) -> int:
    """How many clients may be connected: half of the descriptors beside the `others` of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, (soft - others) // 2))


class Connections(Protocol):
    """The connections that a listener made."""

    @property
    def connected(self) -> int:
        """How many there are."""
        ...

    def new(self) -> Connection:
        """A handler for the next connection."""
        ...

    def close_idle(self, count: int) -> int:
        """Close up to so many connections that hold nothing; returns how many were closed."""
        ...


class Listener:
    """A Unix socket of mode 0600 that accepts connections.

    asyncio's own server accepts on and on when descriptors run out, with an error in the log each time.

    Args:
        connections: makes the handler of each, and closes idle ones where new ones need room.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._path: Path | None = None
        self._inode = 0
        self._opening: dict[asyncio.Task[None], Connection] = {}
        self._others = 0
        self._counted_at = -COUNTED_EVERY_S
        self._spare: int | None = None
        """A descriptor that is given up to accept and refuse a connection where no other one is left."""

    def listen(self, path: Path) -> None:
        """Listen at a path; a socket that an earlier keeper left there is replaced.

        Raises:
            ConfigError: another file lies there, or the path is too long.
            OSError: the socket cannot be made.
        """
        _make_way(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with sockets_are_private():
                sock.bind(str(check_socket_path(path)))
            sock.listen(BACKLOG)
            self._inode = path.stat().st_ino
        except BaseException:
            sock.close()
            raise
        self._stop_accepting()
        self._sock, self._path = sock, path
        self._take_spare()
        self._loop.add_reader(sock, self._accept)

    def is_reachable(self) -> bool:
        """Whether the path still leads to this socket, so that no program removed or replaced the file."""
        if self._path is None:
            return False
        try:
            found = self._path.stat(follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISSOCK(found.st_mode) and found.st_ino == self._inode

    def close(self) -> None:
        """Accept no more, and remove the socket file if it is still this one."""
        if self._path is not None and self.is_reachable():
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._stop_accepting()
        self._path = None

    def _stop_accepting(self) -> None:
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        self._give_spare()

    def _accept(self) -> None:
        arrived: list[socket.socket] = []
        limit = self._limit()
        # A connection counts as idle only some turns after it was accepted. Under a low limit, accepting
        # many in one turn would leave none to close, and refuse the rest.
        most = max(1, min(ACCEPTED_A_TURN, limit // 8))
        try:
            while self._sock is not None and len(arrived) < most:
                arrived.append(self._sock.accept()[0])
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            pass
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if error.errno != errno.EMFILE or not self._make_do():
                self._pause(error)
        if arrived:
            self._admit(arrived, limit)

    def _make_do(self) -> bool:
        """Make room for a new connection, or refuse one, although no descriptor is left.

        A closed idle connection frees its descriptor before the next turn. Returns False where neither
        was possible.
        """
        if self._connections.close_idle(1):
            return True
        if self._sock is None or self._spare is None:
            return False
        self._give_spare()
        with contextlib.suppress(OSError):
            _refuse(self._sock.accept()[0], self._connections.connected)
        self._take_spare()
        return self._spare is not None

    def _take_spare(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _pause(self, error: OSError) -> None:
        """Stop accepting until descriptors are free again; new connections wait in the backlog."""
        LOG.warning("no connection is accepted for %g s: %s", PAUSE_S, error)
        sock = self._sock
        if sock is None:
            return
        self._loop.remove_reader(sock)

        def resume() -> None:
            if self._sock is sock:
                if self._spare is None:
                    self._take_spare()
                self._loop.add_reader(sock, self._accept)

        self._loop.call_later(PAUSE_S, resume)

    def _admit(self, arrived: list[socket.socket], limit: int) -> None:
        """Serve new connections. Beyond the limit idle ones are closed for them, or they are refused."""
        over = self._count() + len(arrived) - limit
        if over > 0:
            over -= self._connections.close_idle(over)
        welcome = min(len(arrived), max(0, len(arrived) - over))
        for conn in arrived[:welcome]:
            conn.setblocking(False)  # noqa: FBT003
            client = self._connections.new()
            task = self._loop.create_task(self._open(conn, client))
            self._opening[task] = client
            task.add_done_callback(self._opening.pop)
        for conn in arrived[welcome:]:
            _refuse(conn, limit)

    def _count(self) -> int:
        opening = sum(not client.is_open for client in self._opening.values())
        return self._connections.connected + opening

    def _limit(self) -> int:
        now = self._loop.time()
        if now >= self._counted_at + COUNTED_EVERY_S and (files := open_files(os.getpid())):
            self._counted_at, self._others = now, max(0, files - self._count())
        return connection_limit(self._others)

    async def _open(self, conn: socket.socket, client: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: client, conn)
        except Exception as error:
            LOG.warning("a connection could not be served: %r", error)
            conn.close()


def _make_way(path: Path) -> None:
    if (found := remove_own_socket(path)) is not None:
        raise ConfigError(
            f"{path} is not a keeper's socket (mode {found.st_mode:o}, owner {found.st_uid}).",
            hint="Remove it, or set $KEEPWARM_RUNTIME_DIR to another private folder.",
        )


def _refuse(conn: socket.socket, limit: int) -> None:
    error = QueueFull(
        f"{limit} connections to the keeper are open and in use, as many as it may have.",
        hint="Use fewer threads or programs at once, or raise the limit on open files "
        "(`ulimit -n`) before the keeper starts.",
        waiting=limit,
        limit=limit,
    )
    conn.setblocking(False)  # noqa: FBT003
    with contextlib.suppress(OSError):
        conn.send(encode({"notice": "refused", "error": error.to_wire()}))
    conn.close()
