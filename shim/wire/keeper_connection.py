"""A connection to the keeper, and the pool of idle connections, as flows over channels."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakSet

from backends.base import Endpoint
from backends.machine.forks import renew_after_fork
from budget.errors import KeeperUnavailable, KeepwarmError, error_from_wire
from shim.wire import silence
from shim.wire.json_lines import Message, decode, encode, keeper_gone, result_of
from shim.wire.silence import closed_before, closed_meanwhile

IDLE_KEPT = 64
"""The most idle connections that are kept; further ones are closed after their call."""


class Channel(Protocol):
    """Lines to and from the keeper. Methods raise `KeeperUnavailable` if the keeper is gone or silent."""

    @property
    def is_gone(self) -> bool:
        """Whether the keeper's end was found closed."""
        ...

    async def send(self, line: bytes, limit_s: float) -> None:
        """Send the rest of a line; waits at most `limit_s` for a busy keeper."""
        ...

    def send_now(self, line: bytes) -> int:
        """Send as much of a line as there is room for; returns how many bytes."""
        ...

    def silent(self, waited_s: float) -> KeeperUnavailable:
        """The error of a keeper that does not read, or says nothing."""
        ...

    async def read(self, limit_s: float) -> bytes:
        """The next line, as soon as it is whole; no byte of it may take longer than the limit."""
        ...

    def arrived(self) -> list[bytes]:
        """The received lines, without waiting."""
        ...

    def interrupt(self) -> None:
        """End the connection from any thread; a thread or task that waits on it finds it closed."""
        ...

    def close(self) -> None:
        """Close the connection; in a forked child, its copy alone."""
        ...


class OwnModels(Protocol):
    """The models of a client's configuration, as the keeper is asked for them."""

    @property
    def references(self) -> Mapping[str, str]:
        """What the keeper is asked for where this client says a name."""
        ...

    async def hand_over(self, connection: KeeperConnection, references: Sequence[str]) -> None:
        """Make models known to the keeper.

        Raises:
            KeepwarmError: the keeper does not take them in.
        """
        ...


class KeeperConnection:
    """One connection, used by one call at a time.

    Args:
        channel: its lines.
        models: the client's models; None where models are called as the keeper calls them.
    """

    def __init__(self, channel: Channel, models: OwnModels | None = None) -> None:
        self._channel = channel
        self._models = models
        self._number = 0
        self.endpoints: dict[str, Endpoint] = {}
        """The last endpoint of each engine; the keeper tells each connection once."""
        self.heard: list[Message] = []
        """Notices of the keeper that `notices` has not returned yet."""
        self._interrupted = False
        self._works = True
        self.is_usable = True
        """Whether nothing failed on it and nothing is outstanding: it may serve the next call.

        False from an op to its answer, and while a line is sent or read.
        """

    @property
    def is_gone(self) -> bool:
        """Whether the keeper ended (True), or is only silent."""
        return self._channel.is_gone

    async def ask(self, op: str, *, within_s: float | None = None, **fields: Any) -> Message:
        """Send an op and wait for its result, for as long as the keeper gives signs of life.

        Args:
            op: the name of the op.
            within_s: the longest wait, even with signs of life.
            fields: the fields of the op.

        Raises:
            KeeperUnavailable: the keeper is gone, or does not respond.
            KeepwarmError: the op's own error.
        """
        return result_of(await self.answer_to(op, within_s=within_s, **fields))

    async def answer_to(self, op: str, *, within_s: float | None = None, **fields: Any) -> Message:
        """As `ask`; returns the keeper's answer as it is, so that what is raised is never the answer.

        Models that the keeper does not know yet are handed over.
        """
        models = self._models if "model" in fields or "models" in fields else None
        for last in (False, False, True):
            self._number += 1
            self.is_usable = False
            said = {"op": op, "id": self._number, **fields}
            if models is not None and "model" in fields:
                said["model"] = models.references[fields["model"]]
            elif models is not None:
                said["models"] = [models.references[name] for name in fields["models"]]
            limit_s = silence.LOOK_S if op in silence.LOOKING else silence.SILENCE_S
            until = None if within_s is None else time.monotonic() + within_s
            try:
                line = encode(said)
                if (sent := self._channel.send_now(line)) < len(line):
                    await self._channel.send(line[sent:], limit_s)
                while True:
                    if until is not None:
                        limit_s = max(min(limit_s, until - time.monotonic()), 0.001)
                    message = decode(await self._channel.read(limit_s))
                    # A lease would be used after its shim was closed; the next read fails then.
                    if message.get("id") == self._number and not self._interrupted:
                        self.is_usable = self._works
                        break
                    self._hear(message)
            except KeeperUnavailable:
                self._works = False
                if self._interrupted:
                    raise closed_meanwhile() from None
                self._hear_refusal()
                raise
            if models is None or last or "ok" in message:
                break
            # Another program may change a model in between, so it is handed over once more.
            if not (unknown := _not_taken_in(message)):
                break
            await models.hand_over(self, unknown)
        return message

    def _hear_refusal(self) -> None:
        """Raise why the keeper closed the connection: that may have arrived before an op was sent."""
        lines: list[bytes] = []
        with contextlib.suppress(KeeperUnavailable):
            lines = self._channel.arrived()
        for said in lines:
            if (message := decode(said)).get("notice") == "refused":
                self._hear(message)

    def tell(self, op: str, **fields: Any) -> None:
        """Send an op that is not answered.

        Raises:
            KeeperUnavailable: the keeper is known to be gone, or does not read.
        """
        is_usable, self.is_usable = self.is_usable, False
        try:
            line = encode({"op": op, **fields})
            if self._channel.send_now(line) < len(line):
                raise self._channel.silent(0.0)
            self.is_usable = is_usable and self._works
        except KeeperUnavailable:
            self._works = False
            raise

    def notices(self) -> list[Message]:
        """The keeper's notices since the last look, without waiting.

        It also answers the keeper's `ping`.

        Raises:
            KeeperUnavailable: the keeper is gone.
        """
        is_usable, self.is_usable = self.is_usable, False
        try:
            for line in self._channel.arrived():
                self._hear(decode(line))
            self.is_usable = is_usable and self._works
        except KeeperUnavailable:
            self._works = False
            if self._interrupted:
                raise closed_meanwhile() from None
            raise
        if not self.heard:
            return []
        heard, self.heard = self.heard, []
        return heard

    def _hear(self, message: Message) -> None:
        notice = message.get("notice")
        if notice == "ping":
            self.tell("pong", lease=message.get("lease"))
        elif notice == "refused":
            self._works = self.is_usable = False
            raise error_from_wire(message["error"])
        elif notice in ("yield", "revoked"):
            self.heard.append(message)

    def interrupt(self) -> None:
        """End the connection from any thread; a call that waits on it raises `Cancelled`."""
        self._works = self.is_usable = False
        self._interrupted = True
        self._channel.interrupt()

    def close(self) -> None:
        """End the connection, and with it everything that it held at the keeper.

        A forked process closes its copy only, and the parent's connection goes on.
        """
        self._works = self.is_usable = False
        self._channel.close()


Hello = Callable[[KeeperConnection], Awaitable[None]]
"""Sends the first op on a new connection."""


class ConnectionPool(ABC):
    """Keeps idle connections, and knows those in use. Safe from any thread and after `fork()`.

    Pools of threads and of event loops differ in how they wait.

    Args:
        connect: makes a socket to a keeper, which it may start.
        hello: begins a new connection.
        models: this client's models, where they are not those of the keeper's configuration.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        hello: Hello,
        models: OwnModels | None = None,
    ) -> None:
        self._new_socket = connect
        self._hello = hello
        self._models = models
        self._closed = False
        self.found_silent = False
        """Whether the keeper did not answer the last time; then it is not asked to explain failures."""
        self._begin_anew()
        renew_after_fork(self)

    def _begin_anew(self) -> None:
        self.idle: deque[KeeperConnection] = deque()
        self._open: WeakSet[KeeperConnection] = WeakSet()
        self._lock = threading.Lock()

    @abstractmethod
    async def _connect(self) -> Channel:
        """A new connection.

        Raises:
            KeepwarmError: no keeper runs and none could be started.
        """

    async def new(self) -> KeeperConnection:
        """A new connection.

        Raises:
            KeepwarmError: no keeper runs and none could be started, or it refuses this client.
        """
        if self._closed:
            raise closed_before()
        connection = KeeperConnection(await self._connect(), self._models)
        if not await self._begin(connection):
            # The keeper was about to end, so wait for the next one.
            connection = KeeperConnection(await self._connect(), self._models)
            if not await self._begin(connection):
                raise keeper_gone()
        return connection

    async def _begin(self, connection: KeeperConnection) -> bool:
        """Say hello on a new connection; returns False when the keeper ends instead of answering."""
        try:
            with self._lock:
                if self._closed:
                    raise closed_before()
                self._open.add(connection)
            await self._hello(connection)
        except KeeperUnavailable:
            connection.close()
            if not connection.is_gone:
                self.found_silent = True
                raise
            return False
        except BaseException:
            connection.close()
            raise
        self.found_silent = False
        return True

    def give(self, connection: KeeperConnection) -> None:
        """Return a connection on which nothing is outstanding."""
        if not connection.is_usable or len(self.idle) >= IDLE_KEPT:
            connection.close()
            return
        # Late messages of the last call do not concern a later call.
        connection.heard.clear()
        self.idle.append(connection)
        if self._closed:
            self._close_idle()

    def close(self) -> None:
        """Close every idle connection, and end those in use: their calls fail with `Cancelled`."""
        with self._lock:
            self._closed = True
            in_use = list(self._open)
        self._close_idle()
        for connection in in_use:
            connection.interrupt()

    def forked(self) -> None:
        """In a forked child: close the copies of the parent's connections, and begin anew."""
        inherited = list(self._open)
        self._begin_anew()
        for connection in inherited:
            connection.close()

    async def ask(self, op: str, **fields: Any) -> Message:
        """One op on a pooled connection; asked once more when the keeper had ended or ends meanwhile.

        Raises:
            KeepwarmError: as `KeeperConnection.ask`.
        """
        connection, result = await self.ask_keeping(op, **fields)
        self.give(connection)
        return result

    async def ask_keeping(self, op: str, **fields: Any) -> tuple[KeeperConnection, Message]:
        """As `ask`; the caller keeps the connection, and has to return or close it."""
        since = time.monotonic()
        try:
            connection = self.idle.pop()
        except IndexError:
            connection = await self.new()
        again = False
        while True:
            try:
                answer = await connection.answer_to(op, **fields)
                break
            except KeeperUnavailable:
                connection.close()
                if again or not connection.is_gone:
                    self.found_silent = not connection.is_gone
                    raise
                # The keeper of this connection is gone, and with it the op and every other idle
                # connection. Nothing was delivered, and the next keeper does not know the op.
                again = True
                self._close_idle()
                connection = await self.new()
                fields = _what_is_left(fields, time.monotonic() - since)
            except BaseException:
                # No answer is here, so the op is open: an error of a signal's handler, a cancellation.
                # Closing withdraws it.
                connection.close()
                raise
        try:
            if not isinstance(result := answer.get("ok"), dict):
                result = result_of(answer)
            return connection, result
        except KeepwarmError:
            self.give(connection)
            raise
        except BaseException:
            connection.close()
            raise

    def _close_idle(self) -> None:
        while self.idle:
            with contextlib.suppress(IndexError):  # another thread took it
                self.idle.pop().close()


def _not_taken_in(answer: Message) -> list[str]:
    """The references that the keeper does not know, where that is its answer."""
    facts = answer["error"].get("facts", {}) if "error" in answer else {}
    return list(facts.get("not_taken_in", ()))


def _what_is_left(fields: dict[str, Any], passed_s: float) -> dict[str, Any]:
    """The fields of an op that is sent again, with the rest of its deadline."""
    deadline_s = fields.get("deadline_s")
    if deadline_s is None:
        return fields
    return {**fields, "deadline_s": max(0.0, deadline_s - passed_s)}
