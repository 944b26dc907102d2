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
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backends.machine.files.folders import check_socket_path
from budget.errors import ConfigError, QueueFull
from shim.wire.json_lines import encode

LOG = logging.getLogger("keepwarm.keeper")

BACKLOG: Final = 1024
ACCEPTED_A_TURN: Final = 64
PAUSE_S: Final = 1.0
MOST_CONNECTIONS: Final = 8192
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def connection_limit() -> int:
    """How many clients may be connected: half of the descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS * 2 if soft == resource.RLIM_INFINITY else soft
    return max(16, min(MOST_CONNECTIONS, most // 2))


class Listener:
    """A Unix socket of mode 0600 that accepts connections.

    asyncio's own server accepts on and on when descriptors run out, with an error in the log each time.

    Args:
        protocol: makes the handler of a connection.
        make_room: called at the limit. It closes an idle connection, or returns False if there is none.
    """

    def __init__(
        self, protocol: Callable[[], asyncio.Protocol], make_room: Callable[[int], bool]
    ) -> None:
        self._protocol = protocol
        self._make_room = make_room
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._path: Path | None = None
        self._inode = 0
        self._accepting: set[asyncio.Task[object]] = set()

    def listen(self, path: Path) -> None:
        """Listen at a path; a socket that an earlier keeper left there is replaced.

        Raises:
            ConfigError: another file lies there, or the path is too long.
            OSError: the socket cannot be made.
        """
        _make_way(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _bind(sock, path)
            sock.listen(BACKLOG)
            self._inode = path.stat().st_ino
        except BaseException:
            sock.close()
            raise
        self._stop_accepting()
        self._sock, self._path = sock, path
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

    def _accept(self) -> None:
        for _ in range(ACCEPTED_A_TURN):
            if self._sock is None:
                return
            try:
                conn, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error)
                return
            conn.setblocking(False)  # noqa: FBT003
            self._admit(conn)

    def _pause(self, error: OSError) -> None:
        """Stop accepting until descriptors are free again; new connections wait in the backlog."""
        LOG.warning("no connection is accepted for %g s: %s", PAUSE_S, error)
        sock = self._sock
        if sock is None:
            return
        self._loop.remove_reader(sock)

        def resume() -> None:
            if self._sock is sock:
                self._loop.add_reader(sock, self._accept)

        self._loop.call_later(PAUSE_S, resume)

    def _admit(self, conn: socket.socket) -> None:
        limit = connection_limit()
        if not self._make_room(limit):
            _refuse(conn, limit)
            return
        opening = self._loop.create_task(self._open(conn))
        self._accepting.add(opening)
        opening.add_done_callback(self._accepting.discard)

    async def _open(self, conn: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, conn)
        except Exception as error:
            LOG.warning("a connection could not be served: %r", error)
            conn.close()


def _make_way(path: Path) -> None:
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"{path} is not a keeper's socket (mode {found.st_mode:o}, owner {found.st_uid}).",
            hint="Remove it, or set $KEEPWARM_RUNTIME_DIR to another private folder.",
        )
    path.unlink()


def _bind(sock: socket.socket, path: Path) -> None:
    before = os.umask(0o177)
    try:
        sock.bind(str(check_socket_path(path)))
    finally:
        os.umask(before)


def _refuse(conn: socket.socket, limit: int) -> None:
    error = QueueFull(
        f"{limit} clients are connected to the keeper, as many as it may have.",
        hint="Use fewer threads or programs at once, or raise the limit on open files "
        "(`ulimit -n`) before the keeper starts.",
        waiting=limit,
        limit=limit,
    )
    with contextlib.suppress(OSError):
        conn.send(encode({"notice": "refused", "error": error.to_wire()}))
    conn.close()
