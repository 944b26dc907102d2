"""A connection to the keeper, and the pool of those that are idle, as flows over channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from budget.errors import KeeperUnavailable
from shim.wire import Message, decode, encode, outcome


class Channel(Protocol):
    """Lines to and from the keeper. Where it is gone, `KeeperUnavailable` is raised."""

    def write(self, line: bytes) -> None:
        """Send a line."""
        ...

    async def read(self) -> bytes:
        """The next line, as soon as it is whole."""
        ...

    async def arrived(self) -> list[bytes]:
        """The lines that are here; none is waited for."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Line:
    """One connection, used by one call at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._number = 0
        self.reused = False

    async def ask(self, op: str, **fields: Any) -> Message:
        """Send an op and wait for its result; notices in between are dropped.

        Raises:
            KeeperUnavailable: the keeper is gone.
            KeepwarmError: the op's own error.
        """
        self._number += 1
        self._channel.write(encode({"op": op, "id": self._number, **fields}))
        while True:
            message = decode(await self._channel.read())
            if message.get("id") == self._number:
                return outcome(message)

    def tell(self, op: str, **fields: Any) -> None:
        """Send an op that is not answered.

        Raises:
            KeeperUnavailable: the keeper is known to be gone.
        """
        self._channel.write(encode({"op": op, **fields}))

    async def notices(self) -> list[Message]:
        """What the keeper said without being asked since the last look; nothing is waited for.

        Raises:
            KeeperUnavailable: the keeper is gone.
        """
        return [decode(line) for line in await self._channel.arrived()]

    def close(self) -> None:
        """End the connection; what it held at the keeper is back at once."""
        self._channel.close()


Hello = Callable[[Line], Awaitable[None]]
"""What is said first on a new connection."""


class Lines(ABC):
    """Idle connections. Those of a thread and of an event loop differ in where they are kept."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello

    @property
    @abstractmethod
    def idle(self) -> deque[Line]:
        """The connections that may be taken here."""

    @abstractmethod
    async def _open(self) -> Channel:
        """A new connection.

        Raises:
            KeepwarmError: no keeper runs and none could be started.
        """

    async def take(self, *, fresh: bool = False) -> Line:
        """An idle connection, or a new one (always, when `fresh`).

        Raises:
            KeepwarmError: no keeper runs and none could be started, or it refuses this client.
        """
        if not fresh and (idle := self._pop()) is not None:
            idle.reused = True
            return idle
        line = Line(await self._open())
        try:
            await self._hello(line)
        except BaseException:
            line.close()
            raise
        return line

    def give(self, line: Line) -> None:
        """Return a connection on which nothing is outstanding."""
        self.idle.append(line)

    def close(self) -> None:
        """Close every idle connection."""
        while (line := self._pop()) is not None:
            line.close()

    async def ask(self, op: str, **fields: Any) -> Message:
        """One op on a pooled connection; retried once when an idle one turns out to be dead.

        Raises:
            KeepwarmError: as `Line.ask`.
        """
        line, result = await self.ask_keeping(op, **fields)
        self.give(line)
        return result

    async def ask_keeping(self, op: str, **fields: Any) -> tuple[Line, Message]:
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
                # Interrupted or cancelled while waiting: closing withdraws the request.
                line.close()
                raise

    def _pop(self) -> Line | None:
        # Looking first would not do: another thread may take the last one in between.
        try:
            return self.idle.pop()
        except IndexError:
            return None
