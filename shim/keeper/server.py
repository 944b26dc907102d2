"""The keeper's door: a Unix socket on which clients ask for leases.

One connection is one client. What is asked on it is answered by id; when it closes, the client's
requests are cancelled and its leases are back at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from budget import actions as act
from budget import events as ev
from budget.errors import (
    ConfigError,
    InternalError,
    InvalidRequest,
    KeepwarmError,
)
from shim.config import Config
from shim.fingerprint import fingerprint
from shim.keeper.keeper import Keeper
from shim.keeper.yielding import Generated
from shim.wire import MAX_LINE_BYTES, VERSION, Message, decode, encode

LOG = logging.getLogger("keepwarm.keeper")

DIAGNOSE_LIMIT_S = 1.0
UNLOAD_LIMIT_S = 120.0

LOOKING = frozenset({"hello", "status", "history", "kv"})
"""Ops that keep no keeper alive and reset no time-out."""

Answer = dict[str, Any] | None
Op = Callable[["Connection", Message], Answer | Awaitable[Answer]]


class Server:
    """Accepts connections for one keeper."""

    def __init__(self, keeper: Keeper, *, on_stop: Callable[[], None]) -> None:
        self.keeper = keeper
        self.on_stop = on_stop
        self.clients: dict[str, Connection] = {}
        self.permanent = False
        self.idle_since = time.monotonic()
        self._numbers = itertools.count(1)
        self._server: asyncio.Server | None = None
        keeper.shell.on_revoke = self._revoked
        keeper.shell.on_yield = self._ask_yield

    @property
    def in_use(self) -> bool:
        """Whether a client is connected that asked for more than to look."""
        return any(client.asked for client in self.clients.values())

    async def listen(self, path: Path) -> None:
        """Listen on a Unix socket of mode 0600; what lay there before is removed."""
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: Connection(self, f"c{next(self._numbers)}"), str(path)
            )
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening and drop every client."""
        if self._server is not None:
            self._server.close()
        for client in list(self.clients.values()):
            client.drop()

    def _revoked(self, request_id: str, error: KeepwarmError) -> None:
        for client in self.clients.values():
            if request_id in client.leases:
                client.leases.discard(request_id)
                client.send({"notice": "revoked", "lease": request_id, "error": error.to_wire()})

    def _ask_yield(self, client_id: str, lease: str) -> None:
        client = self.clients.get(client_id)
        if client is not None:
            client.send({"notice": "yield", "lease": lease})


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server, client_id: str) -> None:
        self._server = server
        self._keeper = server.keeper
        self.client_id = client_id
        self.leases: set[str] = set()
        self.asked = False
        self.pid: int | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()

    # Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected; only this user is let in."""
        assert isinstance(transport, asyncio.Transport)
        self.pid, user = _peer(transport.get_extra_info("socket"))
        if user != os.getuid():
            LOG.warning("refused a connection of user %d", user)
            transport.abort()
            return
        self._transport = transport
        self._server.clients[self.client_id] = self

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
        """The client is gone: what it held is back."""
        if self._server.clients.pop(self.client_id, None) is None:
            return
        self._transport = None
        for task in self._tasks:
            task.cancel()
        if self.asked and not self._server.in_use:
            self._server.idle_since = time.monotonic()
        self._keeper.shell.post(ev.ClientGone(self.client_id))

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
            op = OPS.get(str(message.get("op")))
            if op is None:
                raise InvalidRequest(
                    f"The keeper knows no op {message.get('op')!r}.",
                    hint=f"It knows {', '.join(sorted(OPS))}.",
                )
            self.asked = self.asked or message["op"] not in LOOKING
            result = op(self, message)
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

    # Ops

    def hello(self, message: Message) -> Answer:
        """What this keeper speaks and runs with; the client says whether that is what it counts on."""
        if message.get("version") != VERSION:
            raise ConfigError(
                f"The keeper speaks version {VERSION} of its protocol, the client "
                f"{message.get('version')}.",
                hint="Restart it: `keepwarm keeper stop`.",
            )
        config = self._keeper.config
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "config": str(config.file) if config.file else "given in code",
            "fingerprint": fingerprint(config),
        }

    def lease(self, message: Message) -> Answer | Awaitable[Answer]:
        """Make a model resident and lease it to the client (want `lease`), load it or pin it."""
        model = str(message.get("model"))
        if self._keeper.is_ready_for(model):
            self._ask(message, model)
            return None
        return self._ask_when_ready(message, model)

    async def _ask_when_ready(self, message: Message, model: str) -> Answer:
        await self._keeper.make_ready(model)
        self._ask(message, model)
        return None

    def _ask(self, message: Message, model: str) -> None:
        number = message.get("id")
        if self._transport is None:
            return

        def done(outcome: act.Grant | KeepwarmError) -> None:
            if isinstance(outcome, KeepwarmError):
                self.send({"id": number, "error": outcome.to_wire()})
                return
            if outcome.slot is not None:
                self.leases.add(outcome.request_id)
            self.send({"id": number, "ok": self._keeper.granted(outcome)})

        self._keeper.ask(
            self.client_id,
            model,
            done,
            want=message.get("want", "lease"),
            priority=message.get("priority"),
            deadline_s=message.get("deadline_s"),
            plan=message.get("plan"),
            preemptible=message.get("preemptible") is True,
        )

    def end(self, message: Message) -> Answer:
        """A lease is over; not answered."""
        lease = str(message.get("lease"))
        self.leases.discard(lease)
        if isinstance(spent := message.get("spent"), dict):
            self._keeper.served(lease, spent)
        try:
            self._keeper.shell.post(ev.LeaseEnded(lease, self.client_id))
        except KeepwarmError as error:
            LOG.warning("client %s: %s", self.client_id, error)
        return None

    async def yielded(self, message: Message) -> Answer:
        """A lease that was asked for is back in mid-answer; answered when it is granted again."""
        lease = str(message.get("lease"))
        generated = Generated(int(message["prompt_tokens"]), int(message["tokens"]))
        self.leases.discard(lease)
        told = await self._keeper.yielded(self.client_id, lease, generated)
        self.leases.add(lease)
        return told

    async def diagnose(self, message: Message) -> Answer:
        """What became of the engine of a lease: its death with its last log lines, or nothing."""
        engine, generation = str(message["engine"]), int(message["generation"])
        shell = self._keeper.shell
        async with asyncio.timeout(DIAGNOSE_LIMIT_S * 2):
            until = time.monotonic() + DIAGNOSE_LIMIT_S
            while (death := shell.death_of(engine, generation)) is None:
                life = shell.lives.get(engine)
                if life is None or life.generation != generation or time.monotonic() > until:
                    break
                await asyncio.sleep(0.01)
        return {"death": death}

    def hint(self, message: Message) -> Answer | Awaitable[Answer]:
        """`release`, `unload` or `unpin` a model."""
        model, kind = str(message.get("model")), message["kind"]
        if kind not in ("release", "unload", "unpin"):
            raise InvalidRequest(f"No hint is called {kind!r}.", hint="release, unload or unpin.")
        self._keeper.is_ready_for(model)
        self._keeper.shell.post(ev.HintGiven(kind, model))
        if kind == "unload":
            return self._unloaded(model)
        return {}

    async def _unloaded(self, model: str) -> Answer:
        return {"gone": await self._keeper.until_gone(model, UNLOAD_LIMIT_S)}

    def plan(self, message: Message) -> Answer:
        """The order of coming uses, of this client or of those that name the plan."""
        models = [str(model) for model in message.get("models", ())]
        name = message.get("plan")
        self._keeper.plan(self.client_id, models, None if name is None else str(name))
        return {}

    async def status(self, _: Message) -> Answer:
        """Everything `keepwarm ps` shows."""
        status = self._keeper.status()
        for plan in status["declared"]:
            client = self._server.clients.get(plan["client"])
            plan["pid"] = client.pid if client else None
        return status

    def history(self, message: Message) -> Answer:
        """Loads, evictions and books of a span of time."""
        since, until = int(message["since_ns"]), int(message["until_ns"])
        return self._keeper.shell.history.between(since, until)

    def kv(self, _: Message) -> Answer:
        """What KV state is kept on disk."""
        return self._keeper.shell.kv.kept()

    async def kv_clear(self, message: Message) -> Answer:
        """Delete what is kept of one model, or of all."""
        model = message.get("model")
        if model is not None:
            self._keeper.is_ready_for(str(model))
        files, freed = await self._keeper.shell.kv.clear(None if model is None else str(model))
        return {"files": files, "bytes": freed}

    async def reload(self, message: Message) -> Answer:
        """Take over another configuration."""
        config = Config.from_mapping(
            message["config"], label=str(message.get("label", "the client's"))
        )
        config.remember(Path(message["file"]) if message.get("file") else None, {})
        return dict(await self._keeper.reload(config))

    def stay(self, _: Message) -> Answer:
        """Do not leave for want of clients: somebody started this keeper on purpose."""
        self._server.permanent = True
        return {"pid": os.getpid()}

    def stop(self, _: Message) -> Answer:
        """End the keeper once this answer is on its way."""
        asyncio.get_running_loop().call_soon(self._server.on_stop)
        return {"stopping": True, "pid": os.getpid()}


OPS: dict[str, Op] = {
    "hello": Connection.hello,
    "lease": Connection.lease,
    "end": Connection.end,
    "yielded": Connection.yielded,
    "diagnose": Connection.diagnose,
    "hint": Connection.hint,
    "plan": Connection.plan,
    "status": Connection.status,
    "history": Connection.history,
    "kv": Connection.kv,
    "kv_clear": Connection.kv_clear,
    "reload": Connection.reload,
    "stay": Connection.stay,
    "stop": Connection.stop,
}


def _peer(sock: socket.socket) -> tuple[int, int]:
    """The process and the user at the other end."""
    size = struct.calcsize("3i")
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid), int(uid)
