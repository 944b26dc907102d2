"""One client's connection: lines in, lines out, each message answered by its id."""

from __future__ import annotations

import asyncio
import logging
import os
import select
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Coroutine
from typing import Any, Final

from backends.machine.peers import peer_credentials
from backends.machine.shortages import refused
from budget.errors import InternalError, KeepwarmError, QueueFull
from shim.wire.json_lines import MAX_LINE_BYTES, Message, encode
from shim.wire.messages import UNANSWERED, Asked, number_of, read

LOG = logging.getLogger("keepwarm.keeper")

TURN_S: Final = 0.005
"""How long one client's messages are handled before the loop turns to the others."""
UNSENT_LIMIT_BYTES: Final = 4 * MAX_LINE_BYTES
"""A client that does not read is dropped when so much waits for it."""
UNANSWERED_LIMIT: Final = 256
ALIVE_AFTER_S: Final = 2.0
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR

Answer = dict[str, Any] | None


class Connection(asyncio.Protocol, ABC):
    """The lines of one client. A subclass handles its ops, its begin and its end."""

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.pid: int | None = None
        self.heard_at = 0.0
        """When the client last said something, by the loop's clock."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._handling = False
        self._may_write = True
        self._held = False
        self._unanswered: dict[asyncio.Task[None], float] = {}

    # What a subclass does

    @abstractmethod
    def opened(self) -> None:
        """A client of this user has connected."""

    @abstractmethod
    def closed(self) -> None:
        """The client is gone; called once, and only after `opened`."""

    @abstractmethod
    def answer(self, asked: Asked) -> Answer | Awaitable[Answer]:
        """The answer to one message; None for no answer.

        Raises:
            KeepwarmError: the error is the answer.
        """

    def worded(self, error: KeepwarmError, asked: Asked) -> KeepwarmError:  # noqa: ARG002
        """An error that is the answer, in the client's words."""
        return error

    # Protocol

    @property
    def is_open(self) -> bool:
        """Whether the client is connected."""
        return self._transport is not None

    @property
    def hung_up(self) -> bool:
        """Whether the client closed its end, perhaps with messages that are still to be read."""
        return self._transport is None or bool(self._polled() & _GONE)

    @property
    def has_unread(self) -> bool:
        """Whether the client is there and said something that was not handled yet."""
        if self._transport is None:
            return False
        return bool(self._buffer) or self._polled() & (select.POLLIN | _GONE) == select.POLLIN

    def _polled(self) -> int:
        assert self._transport is not None
        ends = select.poll()
        ends.register(self._transport.get_extra_info("socket"), select.POLLIN | select.POLLRDHUP)
        return sum(events for _, events in ends.poll(0))

    @property
    def waits(self) -> bool:
        """Whether an answer is outstanding."""
        return bool(self._unanswered)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; clients of other users are refused."""
        assert isinstance(transport, asyncio.Transport)
        self.pid, user = peer_credentials(transport.get_extra_info("socket"))
        if user != os.getuid():
            LOG.warning("refused a connection of user %d", user)
            transport.abort()
            return
        self._transport = transport
        self.heard_at = self._loop.time()
        self.opened()

    def data_received(self, data: bytes) -> None:
        """Bytes came; whole lines are messages."""
        self._buffer += data
        self.heard_at = self._loop.time()
        if not self._handling:
            self._handle_lines()

    def pause_writing(self) -> None:
        """The client does not read, so its messages are not read either until it does."""
        self._may_write = False

    def resume_writing(self) -> None:
        """The client reads again."""
        self._may_write = True
        self._handling = True
        self._loop.call_soon(self._handle_lines)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client is gone: cancel the answers that are under way."""
        if self._transport is None:
            return
        self._transport = None
        self._buffer.clear()
        for task in self._unanswered:
            task.cancel()
        self.closed()

    def drop(self) -> None:
        """Close the connection from this side."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now, without waiting until the client has read what it was sent."""
        if self._transport is not None:
            self._transport.abort()

    def send(self, message: Message) -> None:
        """Write one message, unless the client is gone."""
        if self._transport is None:
            return
        self._transport.write(encode(message))
        if self._transport.get_write_buffer_size() > UNSENT_LIMIT_BYTES:
            LOG.warning(
                "client %s (process %s) does not read: dropped with over %d bytes unsent",
                self.client_id,
                self.pid,
                UNSENT_LIMIT_BYTES,
            )
            self._transport.abort()

    def beat(self, now: float) -> None:
        """Send `alive` to a client that waits for a slow answer."""
        # The first of the dictionary is the oldest.
        if self._unanswered and now - next(iter(self._unanswered.values())) >= ALIVE_AFTER_S:
            self.send({"notice": "alive"})

    # Messages

    def _handle_lines(self) -> None:
        """Handle some of the received lines; the rest is handled after other work of the loop."""
        self._handling = False
        until = self._loop.time() + TURN_S
        while self._may_write and self._buffer and (line := self._next_line()) is not None:
            self._receive(line)
            if self._buffer and self._loop.time() > until:
                self._handling = True
                self._loop.call_soon(self._handle_lines)
                break
        if self._transport is None:
            return
        held = self._handling or not self._may_write
        if held != self._held:
            self._held = held
            (self._transport.pause_reading if held else self._transport.resume_reading)()
        if len(self._buffer) > MAX_LINE_BYTES and self._searched == len(self._buffer):
            LOG.warning("client %s sent a line of over %d bytes", self.client_id, MAX_LINE_BYTES)
            self.drop()

    def _next_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def _receive(self, line: bytes) -> None:
        asked: Asked | None = None
        try:
            asked = read(line)
            number = asked.id
            if len(self._unanswered) >= UNANSWERED_LIMIT and type(asked) not in UNANSWERED:
                raise _too_many()
            result = self.answer(asked)
            if isinstance(result, dict):
                self.send({"id": number, "ok": result})
            elif result is not None:
                self._later(asked, result)
        except Exception as error:
            self._fail(line if asked is None else asked, error)

    def _later(self, asked: Asked, work: Awaitable[Answer]) -> None:
        async def finish() -> None:
            try:
                result = await work
                if result is not None:
                    self.send({"id": asked.id, "ok": result})
            except Exception as error:
                self._fail(asked, error)

        def ended(task: asyncio.Task[None]) -> None:
            del self._unanswered[task]
            if task.cancelled():
                _drop(work)

        task = self._loop.create_task(finish())
        self._unanswered[task] = self._loop.time()
        task.add_done_callback(ended)

    def _fail(self, asked: Asked | bytes, error: Exception) -> None:
        if (short := refused(error, "The keeper cannot do that now")) is not None:
            LOG.warning("client %s: %r", self.client_id, error)
            error = short
        elif not isinstance(error, KeepwarmError):
            LOG.error("client %s", self.client_id, exc_info=error)
            error = InternalError(f"{type(error).__name__}: {error}")
        if isinstance(asked, bytes):
            self.send({"id": number_of(asked), "error": error.to_wire()})
        else:
            self.send({"id": asked.id, "error": self.worded(error, asked).to_wire()})


def _drop(work: Awaitable[Answer]) -> None:
    """Give up work for a client that is gone; asyncio complains about work that was never waited for."""
    if isinstance(work, Coroutine):
        work.close()
    elif isinstance(work, asyncio.Future) and not work.cancel() and not work.cancelled():
        work.exception()


def _too_many() -> QueueFull:
    return QueueFull(
        f"{UNANSWERED_LIMIT} messages of one connection wait for their answers.",
        hint="Wait for answers, or open another connection.",
        waiting=UNANSWERED_LIMIT,
        limit=UNANSWERED_LIMIT,
    )
