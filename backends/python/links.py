"""Connections to a Python worker, for threads (they block) and for event loops (they suspend)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final, Protocol, Self
from weakref import WeakSet

from backends.machine.forks import renew_after_fork
from backends.python.frames import BadFrame, Incoming, framed, sent_with

_AGAIN_S: Final = 0.005
"""The pause before another try where a worker has many connections waiting."""
Left = Callable[[], float]
"""Returns the seconds that are left for a wait; raises when there are none."""


def _forever() -> float:
    return 3600.0


class OpenLinks:
    """The connections of one session, so that closing it ends its calls. Safe after `fork()`."""

    def __init__(self) -> None:
        self._links: WeakSet[Link] = WeakSet()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the connections are the parent's."""
        links, self._links = list(self._links), WeakSet()
        for link in links:
            link.close()

    def add(self, link: Link) -> None:
        """Remember a connection while it exists."""
        self._links.add(link)

    def shut_down(self) -> None:
        """Have all running calls fail; from any thread."""
        for link in list(self._links):
            link.shut_down()


class Link(Protocol):
    """A connection to a worker: one call."""

    async def send(self, op: str, value: Any, left: Left) -> None:
        """Send one frame."""

    async def receive(self, left: Left) -> tuple[str, Any]:
        """The next frame."""

    def close(self) -> None:
        """Hang up. Idempotent."""

    def shut_down(self) -> None:
        """Wake up the call that waits here; from any thread."""


class _Link:
    """What both kinds share: how a frame goes out and comes in, given when the socket is ready."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(0.0)
        self._socket = sock
        self._pid = os.getpid()

    @abstractmethod
    async def _until_ready(self, left: Left, *, writing: bool) -> None: ...

    @classmethod
    async def connect(cls, path: str, left: Left = _forever) -> Self:
        """Connect to a worker.

        Raises:
            OSError: nothing listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link = cls(sock)
        try:
            while True:
                try:
                    sock.connect(path)
                except BlockingIOError:
                    await cls._pause(min(_AGAIN_S, left()))
                else:
                    return link
        except BaseException:
            link.close()
            raise

    @staticmethod
    @abstractmethod
    async def _pause(seconds: float) -> None: ...

    async def send(self, op: str, value: Any, left: Left) -> None:
        """Send one frame.

        Raises:
            Unsendable: the value cannot be sent.
            OSError: the connection is broken.
        """
        data, fd = framed(op, value, "the payload")
        rest, beside = memoryview(data), sent_with(fd)
        try:
            while rest:
                try:
                    sent = self._socket.sendmsg([rest], beside)
                except BlockingIOError:
                    await self._until_ready(left, writing=True)
                else:
                    rest, beside = rest[sent:], []
        finally:
            if fd >= 0:
                os.close(fd)

    async def receive(self, left: Left) -> tuple[str, Any]:
        """The op and the value of the next frame.

        Raises:
            EOFError: the other side has hung up.
            BadFrame: what came is no frame.
            OSError: the connection is broken.
        """
        incoming = Incoming()
        try:
            while incoming.wanted:
                try:
                    if not incoming.take(self._socket):
                        raise EOFError
                except BlockingIOError:
                    await self._until_ready(left, writing=False)
            return incoming.value()
        finally:
            incoming.close()

    async def ask(self, op: str, value: Any) -> Any:
        """Send one frame, and return the value of the answer."""
        await self.send(op, value, _forever)
        answered, said = await self.receive(_forever)
        if answered != op:
            raise BadFrame(f"{op} was answered by {answered:.40}")
        return said

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._socket.close()

    def shut_down(self) -> None:
        """Wake up the call that waits here; from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class ThreadLink(_Link):
    """A connection whose waits block the calling thread."""

    async def _until_ready(self, left: Left, *, writing: bool) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT if writing else select.POLLIN)
        poll.poll(max(1.0, left() * 1000))
        left()

    @staticmethod
    async def _pause(seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251  # a thread's primitive blocks


class LoopLink(_Link):
    """A connection whose waits suspend the calling task."""

    async def _until_ready(self, left: Left, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (
            (loop.add_writer, loop.remove_writer)
            if writing
            else (loop.add_reader, loop.remove_reader)
        )
        fd = self._socket.fileno()
        add(fd, _done, ready)
        try:
            await asyncio.wait({ready}, timeout=left())
        finally:
            remove(fd)
            ready.cancel()
        left()

    @staticmethod
    async def _pause(seconds: float) -> None:
        await asyncio.sleep(seconds)


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
