"""The same as `shim.line`, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from budget.errors import KeeperUnavailable
from shim.wire import MAX_LINE_BYTES, Message, decode, encode, keeper_gone, outcome

Connect = Callable[[], socket.socket]
Hello = Callable[["AsyncKeeperLine"], Awaitable[None]]


class AsyncKeeperLine:
    """One connection, used by one call at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self.reused = False

    async def ask(self, op: str, **fields: Any) -> Message:
        """Send an op and wait for its result; notices in between are dropped.

        Raises:
            KeeperUnavailable: the keeper is gone.
            KeepwarmError: the op's own error.
        """
        self._number += 1
        self.tell(op, id=self._number, **fields)
        while True:
            message = await self._read()
            if message.get("id") == self._number:
                return outcome(message)

    def tell(self, op: str, **fields: Any) -> None:
        """Send an op without waiting for an answer."""
        self._writer.write(encode({"op": op, **fields}))

    async def notices(self) -> list[Message]:
        """What the keeper said without being asked since the last look; waits for one loop turn.

        Raises:
            KeeperUnavailable: the keeper is gone.
        """
        found: list[Message] = []
        with contextlib.suppress(TimeoutError):
            # A line that is broken off stays in the reader's buffer.
            async with asyncio.timeout(0):
                while True:
                    found.append(await self._read())
        return found

    def close(self) -> None:
        """End the connection; what it held at the keeper is back at once."""
        self._writer.close()

    async def _read(self) -> Message:
        try:
            line = await self._reader.readline()
        except OSError as exc:
            raise keeper_gone() from exc
        if not line.endswith(b"\n"):
            raise keeper_gone()
        return decode(line)


class AsyncLinePool:
    """Idle connections, by event loop."""

    def __init__(self, connect: Connect, hello: Hello) -> None:
        self._connect = connect
        self._hello = hello
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[AsyncKeeperLine]] = (
            WeakKeyDictionary()
        )
        self._pid = os.getpid()

    @property
    def _idle(self) -> deque[AsyncKeeperLine]:
        if self._pid != os.getpid():
            self._by_loop, self._pid = WeakKeyDictionary(), os.getpid()
        return self._by_loop.setdefault(asyncio.get_running_loop(), deque())

    async def take(self, *, fresh: bool = False) -> AsyncKeeperLine:
        """An idle connection, or a new one (always, when `fresh`)."""
        idle = self._idle
        if not fresh and idle:
            line = idle.pop()
            line.reused = True
            return line
        sock = await asyncio.to_thread(self._connect)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=MAX_LINE_BYTES)
        line = AsyncKeeperLine(reader, writer)
        try:
            await self._hello(line)
        except BaseException:
            line.close()
            raise
        return line

    def give(self, line: AsyncKeeperLine) -> None:
        """Return a connection on which nothing is outstanding."""
        self._idle.append(line)

    def close(self) -> None:
        """Close the running loop's idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def ask(self, op: str, **fields: Any) -> Message:
        """One op on a pooled connection; retried once when an idle one turns out to be dead."""
        line, result = await self.ask_keeping(op, **fields)
        self.give(line)
        return result

    async def ask_keeping(self, op: str, **fields: Any) -> tuple[AsyncKeeperLine, Message]:
        """As `ask`; the connection stays with the caller, who returns or closes it."""
        line = await self.take()
        while True:
            try:
                return line, await line.ask(op, **fields)
            except KeeperUnavailable:
                line.close()
                if not line.reused:
                    raise
                # The keeper that this connection led to is gone, and so is every other idle one.
                self.close()
                line = await self.take(fresh=True)
            except Exception:
                self.give(line)
                raise
            except BaseException:
                # Cancelled while waiting: closing withdraws the request.
                line.close()
                raise
