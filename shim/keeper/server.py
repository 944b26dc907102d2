"""The keeper's door: a Unix socket on which clients ask for leases.

One connection is one client. What is asked on it is answered by id; when it closes, the client's
requests are cancelled and its leases are back at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from budget import actions as act
from budget import events as ev
from budget.errors import (
    ConfigError,
    InvalidRequest,
    KeepwarmError,
)
from shim.config import Config
from shim.fingerprint import fingerprint
from shim.keeper.connection import Answer, Connection
from shim.keeper.keeper import Keeper
from shim.keeper.yielding import Generated
from shim.wire import VERSION, Message

LOG = logging.getLogger("keepwarm.keeper")

DIAGNOSE_LIMIT_S = 1.0
UNLOAD_LIMIT_S = 120.0

LOOKING = frozenset({"hello", "status", "history", "kv"})
"""Ops that keep no keeper alive and reset no time-out."""

Op = Callable[["Client", Message], Answer | Awaitable[Answer]]


class Server:
    """Accepts connections for one keeper."""

    def __init__(self, keeper: Keeper, *, on_stop: Callable[[], None]) -> None:
        self.keeper = keeper
        self.on_stop = on_stop
        self.clients: dict[str, Client] = {}
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
                lambda: Client(self, f"c{next(self._numbers)}"), str(path)
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


class Client(Connection):
    """One client of a keeper, and the ops that it can ask for."""

    def __init__(self, server: Server, client_id: str) -> None:
        super().__init__(client_id)
        self._server = server
        self._keeper = server.keeper
        self.leases: set[str] = set()
        self.asked = False

    def opened(self) -> None:
        """The server knows it from now on."""
        self._server.clients[self.client_id] = self

    def closed(self) -> None:
        """What it held is back."""
        del self._server.clients[self.client_id]
        if self.asked and not self._server.in_use:
            self._server.idle_since = time.monotonic()
        self._keeper.shell.post(ev.ClientGone(self.client_id))

    def answer(self, message: Message) -> Answer | Awaitable[Answer]:
        """What its op answers.

        Raises:
            InvalidRequest: there is no such op.
            KeepwarmError: the op's own error.
        """
        op = OPS.get(str(message.get("op")))
        if op is None:
            raise InvalidRequest(
                f"The keeper knows no op {message.get('op')!r}.",
                hint=f"It knows {', '.join(sorted(OPS))}.",
            )
        self.asked = self.asked or message["op"] not in LOOKING
        return op(self, message)

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
        if not self.is_open:
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
            persist=message.get("persist") is True,
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
            while (death := shell.lives.death_of(engine, generation)) is None:
                life = shell.lives.now.get(engine)
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
        return self._keeper.shell.lives.kv.kept()

    async def kv_clear(self, message: Message) -> Answer:
        """Delete what is kept of one model, or of all."""
        model = message.get("model")
        if model is not None:
            self._keeper.is_ready_for(str(model))
        files, freed = await self._keeper.shell.lives.kv.clear(
            None if model is None else str(model)
        )
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
    "hello": Client.hello,
    "lease": Client.lease,
    "end": Client.end,
    "yielded": Client.yielded,
    "diagnose": Client.diagnose,
    "hint": Client.hint,
    "plan": Client.plan,
    "status": Client.status,
    "history": Client.history,
    "kv": Client.kv,
    "kv_clear": Client.kv_clear,
    "reload": Client.reload,
    "stay": Client.stay,
    "stop": Client.stop,
}
