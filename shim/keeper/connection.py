"""One client's connection: lines in, lines out, each message answered by its id."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Any

from budget.errors import InternalError, KeepwarmError
from shim.wire import MAX_LINE_BYTES, Message, decode, encode

LOG = logging.getLogger("keepwarm.keeper")

Answer = dict[str, Any] | None


class Connection(asyncio.Protocol, ABC):
    """Lines of one client. What is asked in them, and what its coming and going means, is a subclass's."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.pid: int | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()

    # What a subclass does

    @abstractmethod
    def opened(self) -> None:
        """A client of this user is there."""

    @abstractmethod
    def closed(self) -> None:
        """It is gone; called once, and only after `opened`."""

    @abstractmethod
    def answer(self, message: Message) -> Answer | Awaitable[Answer]:
        """What one message is answered; None is no answer.

        Raises:
            KeepwarmError: this is the answer.
        """

    # Protocol

    @property
    def is_open(self) -> bool:
        """Whether the client is there."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; only this user is let in."""
        assert isinstance(transport, asyncio.Transport)
        self.pid, user = _peer(transport.get_extra_info("socket"))
        if user != os.getuid():
            LOG.warning("refused a connection of user %d", user)
            transport.abort()
            return
        self._transport = transport
        self.opened()

    def data_received(self, data: bytes) -> None:
        """Bytes came; whole lines are messages."""
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._receive(line)
        if len(self._buffer) > MAX_LINE_BYTES:
            LOG.warning("client %s sent a line of over %d bytes", self.client_id, MAX_LINE_BYTES)
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone: what was still being answered is cancelled."""
        if self._transport is None:
            return
        self._transport = None
        for task in self._tasks:
            task.cancel()
        self.closed()

    def drop(self) -> None:
        """Close the connection from this side."""
        if self._transport is not None:
            self._transport.close()

    def send(self, message: Message) -> None:
        """Write one message, unless the client is gone."""
        if self._transport is not None:
            self._transport.write(encode(message))

    # Messages

    def _receive(self, line: bytes) -> None:
        number: Any = None
        try:
            message = decode(line)
            number = message.get("id")
            result = self.answer(message)
            if isinstance(result, Awaitable):
                self._later(number, result)
            elif result is not None:
                self.send({"id": number, "ok": result})
        except Exception as error:
            self._fail(number, error)

    def _later(self, number: Any, work: Awaitable[Answer]) -> None:
        async def finish() -> None:
            try:
                result = await work
                if result is not None:
                    self.send({"id": number, "ok": result})
            except Exception as error:
                self._fail(number, error)

        task = asyncio.get_running_loop().create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail(self, number: Any, error: Exception) -> None:
        if not isinstance(error, KeepwarmError):
            LOG.exception("client %s", self.client_id, exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}")
        self.send({"id": number, "error": error.to_wire()})


def _peer(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid), int(uid)
