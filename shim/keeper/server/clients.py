"""The clients of a keeper, and the ops that each can ask for."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from backends.machine.bounded_questions import in_own_thread
from budget import actions as act
from budget import events as ev
from budget.admission.refusals import too_late
from budget.errors import KeepwarmError, error_from_wire
from shim.config import Config
from shim.keeper.keeper import Keeper
from shim.keeper.server.connection import Answer, Connection
from shim.keeper.server.own_names import in_own_names
from shim.keeper.server.programs import Programs
from shim.keeper.server.status import grant_answer, log_of
from shim.keeper.shell.yielding import Generated
from shim.wire import messages as op
from shim.wire.agreed_sections import sections_said
from shim.wire.fingerprint import label_of, name_of
from shim.wire.json_lines import VERSION

LOG = logging.getLogger("keepwarm.keeper")

DIAGNOSE_LIMIT_S: Final = 1.0
"""How long a reported engine that seems well is watched for its death."""
CLEARED_LIMIT_S: Final = 8.0
"""How long the answer about a dead engine waits for its clean-up. Clients wait 10 s for the answer."""
UNLOAD_LIMIT_S: Final = 30.0
IDLE_KEPT: Final = 64
"""How many connections may stay open although nothing is asked or held on them."""
IDLE_AGE_S: Final = 60.0
"""Beyond those, a connection that was silent for so long is closed; its client opens another if needed."""

OF_MODEL: Final[frozenset[type[op.Asked]]] = frozenset((op.LeaseOp, op.Hint, op.KvClear, op.Log))
"""Ops that name one model."""
OF_MODELS: Final[frozenset[type[op.Asked]]] = frozenset((op.DeclareOp, op.WhatIfOp))
"""Ops that name several."""
ORDERS: Final[frozenset[type[op.Asked]]] = frozenset(
    (op.Stop, op.Reload, op.KvClear, op.StayOp, op.Hint)
)
"""Ops that change something beyond their client. They are not carried out if the client has given up."""
LOOKING: Final[frozenset[type[op.Asked]]] = frozenset(
    (
        op.Hello,
        op.Status,
        op.WhatIfOp,
        op.HistoryOf,
        op.Capture,
        op.Log,
        op.Kv,
        op.Pong,
    )
)
"""Ops that only look: they neither keep the keeper running nor reset a time-out."""


class Clients:
    """Every connected client, by its id.

    Args:
        keeper: answers them.
        stop: set when the keeper is to end, by a client's request among others.
    """

    def __init__(self, keeper: Keeper, stop: asyncio.Event) -> None:
        self.keeper = keeper
        self.stop = stop
        self.on_pong: Callable[[Client, str], None] = lambda _client, _lease: None
        self.by_id: dict[str, Client] = {}
        self.programs = Programs()
        self.permanent = False
        self.idle_since = time.monotonic()
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    @property
    def in_use(self) -> bool:
        """Whether a connected client has asked for more than `LOOKING`."""
        return any(client.asked for client in self.by_id.values())

    @property
    def models_in_use(self) -> set[str]:
        """The models that a connected client has named."""
        return {name for client in self.by_id.values() for name in client.models}

    def overriding(self, model: str) -> int:
        """How many programs use a model all the same that is unfit for its role."""
        clients = (client for client in self.by_id.values() if model in client.overridden)
        return len({client.pid or client.client_id for client in clients})

    def new(self) -> Client:
        """A client for the next connection."""
        return Client(self, f"c{next(self._numbers)}")

    @property
    def connected(self) -> int:
        """How many clients there are."""
        return len(self.by_id)

    def close_idle(self, count: int) -> int:
        """Close up to so many idle connections, the longest silent first; returns how many were closed."""
        silent = (client for client in self._idle() if not client.has_unread)
        idle = list(itertools.islice(silent, count))
        for client in idle:
            client.abort()
        return len(idle)

    def beat(self) -> None:
        """Send `alive` to clients that wait, and close connections that were idle for too long."""
        now = self._loop.time()
        for client in list(self.by_id.values()):
            client.beat(now)
        if len(self.by_id) > IDLE_KEPT:
            for client in self._idle()[:-IDLE_KEPT]:
                if now - client.heard_at > IDLE_AGE_S:
                    client.drop()

    def drop(self) -> None:
        """Close every connection."""
        for client in list(self.by_id.values()):
            client.drop()

    def revoked(self, request_id: str, error: KeepwarmError) -> None:
        """Send a client the notice that its lease was revoked."""
        for client in self.by_id.values():
            if request_id in client.leases:
                client.leases.discard(request_id)
                told = client.of_lease(error, request_id).to_wire()
                client.send({"notice": "revoked", "lease": request_id, "error": told})

    def ask_yield(self, client_id: str, lease: str) -> None:
        """Ask a client to yield its lease for a request of higher priority."""
        client = self.by_id.get(client_id)
        if client is not None:
            client.send({"notice": "yield", "lease": lease})

    def _idle(self) -> list[Client]:
        """The clients that hold nothing and wait for nothing, the longest silent first."""
        idle = (client for client in self.by_id.values() if client.is_idle)
        return sorted(idle, key=lambda client: client.heard_at)


class Client(Connection):
    """One client of a keeper, and the ops that it can ask for."""

    def __init__(self, clients: Clients, client_id: str) -> None:
        super().__init__(client_id)
        self._clients = clients
        self._keeper = clients.keeper
        self.leases: set[str] = set()
        self.models: dict[str, str] = {}
        """The client's names of the models that it named, by the keeper's.

        They stay in the keeper's books as long as it is connected.
        """
        self.overridden: set[str] = set()
        """Evaluators under the floor that the client uses all the same, by the keeper's names."""
        self.asked = False
        self._program: str | None = None
        self._holds: set[str] = set()
        """DeclaredUses and pins that end with the connection."""
        self._told: dict[str, Mapping[str, Any]] = {}
        """The last endpoint of each engine that the client was told of; it is told once of each."""
        self._leased: dict[str, str] = {}
        """The model of each lease that the client has not ended, also of those that were revoked."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost if the connection were closed."""
        return self.is_open and not (self.leases or self._holds or self.waits)

    def opened(self) -> None:
        """Register the client."""
        self._clients.by_id[self.client_id] = self
        if self.pid is not None:
            self._program = self._clients.programs.opened(self.pid)

    def closed(self) -> None:
        """Release everything that the client held."""
        del self._clients.by_id[self.client_id]
        if self.pid is not None:
            self._clients.programs.closed(self.pid)
        if self.asked and not self._clients.in_use:
            self._clients.idle_since = time.monotonic()
        self._keeper.shell.post(ev.ClientGone(self.client_id))

    def answer(self, asked: op.Asked) -> Answer | Awaitable[Answer]:
        """The answer to an op.

        Raises:
            KeepwarmError: the op's own error.
        """
        # By the class itself: pydantic's own `isinstance` is Python code, and this is every message's way.
        kind = type(asked)
        if kind in ORDERS and self.hung_up:
            LOG.warning("client %s did not wait for %r: it is not done", self.client_id, asked.op)
            return None
        self.asked = self.asked or kind not in LOOKING
        if kind in OF_MODEL or kind in OF_MODELS:
            self._name(asked)
        return _OPS[kind](self, asked)

    def _name(self, asked: Any) -> None:
        """Put the keeper's names in place of the client's."""
        changes = self._keeper.changes
        if type(asked) in OF_MODELS:
            said, asked.models = asked.models, changes.names_of(asked.models)
            self.models.update(zip(asked.models, map(name_of, said), strict=True))
        elif (said := asked.model) is not None:
            known = changes.projects.references.get(said)
            asked.model = known or changes.names_of((said,))[0]
            self.models[asked.model] = name_of(said)

    def worded(self, error: KeepwarmError, asked: op.Asked) -> KeepwarmError:
        """An error in the client's names of its models."""
        if isinstance(asked, op.Yielded):
            return self.of_lease(error, asked.lease)
        model = getattr(asked, "model", None)
        return error if model is None else self._of_model(error, model)

    def of_lease(self, error: KeepwarmError, lease: str | None) -> KeepwarmError:
        """The error of a lease's request; without a lease, that of the last one."""
        model = self._leased.get(lease or next(reversed(self._leased), ""))
        return error if model is None else self._of_model(error, model)

    def _of_model(self, error: KeepwarmError, model: str) -> KeepwarmError:
        said = self.models.get(model, model)
        return in_own_names(error, self._keeper.catalog, model, said)

    # Ops

    def _hello(self, _: op.Hello) -> Answer:
        """The keeper's protocol and the sections that hold; the client compares them with its own."""
        config = self._keeper.config
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "config": label_of(config),
            "since": config.read_at,
            **sections_said(config),
        }

    def _lease(self, asked: op.LeaseOp) -> Answer | Awaitable[Answer]:
        if self._clients.stop.is_set():
            return None  # its connection is closed next, so that the client asks the next keeper
        if self._keeper.is_ready_for(asked.model):
            return self._ask(asked)
        return self._ask_when_ready(asked)

    async def _ask_when_ready(self, asked: op.LeaseOp) -> Answer:
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(asked.deadline_s):
                await self._keeper.make_ready(asked.model)
        except TimeoutError:
            raise too_late(asked.model, time.monotonic() - began_s) from None
        if asked.deadline_s is not None:
            left_s = asked.deadline_s - (time.monotonic() - began_s)
            asked = asked.model_copy(update={"deadline_s": max(0.0, left_s)})
        answer = self._ask(asked)
        return await answer if isinstance(answer, Awaitable) else answer

    def _ask(self, asked: op.LeaseOp) -> Answer | Awaitable[Answer]:
        if asked.overridden:
            self.overridden.add(asked.model)
        else:
            self._keeper.refresh.check_fit(asked.model)
        at_once: list[act.Grant | KeepwarmError] = []
        later: list[asyncio.Future[Answer]] = []

        def done(outcome: act.Grant | KeepwarmError) -> None:
            if not later:
                at_once.append(outcome)
            elif isinstance(outcome, KeepwarmError):
                if not later[0].done():
                    later[0].set_exception(outcome)
            else:
                answer = self._granted(asked, outcome)
                if not later[0].done():
                    later[0].set_result(answer)

        self._keeper.ask(
            self.client_id,
            asked.model,
            done,
            want=asked.want,
            priority=asked.priority,
            deadline_s=asked.deadline_s,
            plan=asked.plan,
            preemptible=asked.preemptible,
            persist=asked.persist,
            inside=asked.inside,
            owner=self._program,
        )
        if not at_once:
            later.append(asyncio.get_running_loop().create_future())
            return later[0]
        outcome = at_once[0]
        if isinstance(outcome, KeepwarmError):
            raise outcome
        return self._granted(asked, outcome)

    def _granted(self, asked: op.LeaseOp, grant: act.Grant) -> Answer:
        answer = grant_answer(self._keeper.shell, grant)
        if grant.slot is not None:
            self.leases.add(grant.request_id)
            self._leased[grant.request_id] = asked.model
            endpoint = answer["endpoint"]
            if self._told.get(grant.engine_id) is endpoint:
                del answer["endpoint"]
            self._told[grant.engine_id] = endpoint
        elif asked.want == "pin" and not asked.persist:
            self._holds.add(f"pin {asked.model}")
        return answer

    def _end(self, asked: op.End) -> Answer:
        self.leases.discard(asked.lease)
        self._leased.pop(asked.lease, None)
        if asked.spent:
            self._keeper.served(asked.lease, asked.spent)
        try:
            self._keeper.shell.post(ev.LeaseEnded(asked.lease, self.client_id))
        except KeepwarmError as error:
            LOG.warning("client %s: %s", self.client_id, error)
        return None

    async def _yielded(self, asked: op.Yielded) -> Answer:
        """Answered when the lease is granted again."""
        generated = Generated(asked.prompt_tokens, asked.tokens)
        self.leases.discard(asked.lease)
        answer = await self._keeper.yielded(self.client_id, asked.lease, generated)
        self.leases.add(asked.lease)
        return answer

    def _pong(self, asked: op.Pong) -> Answer:
        self._clients.on_pong(self, asked.lease)
        return None

    async def _diagnose(self, asked: op.Diagnose) -> Answer:
        """How the engine of a lease ended, with its last log lines; empty if it runs.

        An engine that does not answer is ended. The answer comes once the engine can start again, so that
        a client that asks again at once does not get the dead one.
        """
        keeper, supervisor = self._keeper, self._keeper.shell.supervisor
        await keeper.liveness.check_now(asked.engine, asked.generation)
        begun = time.monotonic()
        while keeper.is_up(asked.engine, asked.generation):
            is_dead = supervisor.death_of(asked.engine, asked.generation) is not None
            if time.monotonic() - begun > (CLEARED_LIMIT_S if is_dead else DIAGNOSE_LIMIT_S):
                break
            await asyncio.sleep(0.01)
        death = supervisor.death_of(asked.engine, asked.generation, asked.lease)
        if death:
            own = self.of_lease(error_from_wire(death), asked.lease)
            return {"death": own.to_wire(), "bytes": None}
        return {"death": None, "bytes": await keeper.bytes_of(asked.engine, asked.generation)}

    def _hint(self, asked: op.Hint) -> Answer | Awaitable[Answer]:
        self._keeper.is_ready_for(asked.model)
        self._keeper.shell.post(ev.HintGiven(asked.kind, asked.model))
        if asked.kind == "unpin":
            self._keeper.catalog.unpinned.add(asked.model)
            self._holds.discard(f"pin {asked.model}")
        return self._unloaded(asked.model) if asked.kind == "unload" else {}

    async def _unloaded(self, model: str) -> Answer:
        return {"gone": await self._keeper.until_gone(model, UNLOAD_LIMIT_S)}

    def _plan(self, asked: op.DeclareOp) -> Answer:
        overridden = [one for one in asked.models if self.models[one] in asked.overridden]
        self.overridden.update(overridden)
        self._keeper.plan(
            self.client_id, asked.models, asked.plan, overridden, any_order=asked.any_order
        )
        held = f"plan {asked.plan or ''}"
        (self._holds.add if asked.models else self._holds.discard)(held)
        return {}

    async def _status(self, _: op.Status) -> Answer:
        await self._keeper.monitor.refresh()
        status = self._keeper.status()
        leases = [lease for engine in status["engines"] for lease in engine["leases"]]
        for row in (*status["declared"], *status["queue"], *leases):
            client = self._clients.by_id.get(row["client"])
            row["pid"] = client.pid if client else None
        for model, error in status["unavailable"].items():
            error["overridden_by"] = self._clients.overriding(model)
        return status

    async def _what_if(self, asked: op.WhatIfOp) -> Answer:
        return await self._keeper.what_if(asked.models)

    def _history(self, asked: op.HistoryOf) -> Answer:
        return self._keeper.shell.history.between(asked.since_ns, asked.until_ns)

    def _capture(self, asked: op.Capture) -> Answer:
        return self._keeper.ring.captured(asked.last_s)

    def _log(self, asked: op.Log) -> Answer:
        self._keeper.is_ready_for(asked.model)
        return log_of(self._keeper.shell, self._keeper.catalog, asked)

    def _kv(self, _: op.Kv) -> Answer:
        return self._keeper.shell.supervisor.kv.kept()

    async def _kv_clear(self, asked: op.KvClear) -> Answer:
        if asked.model is not None:
            self._keeper.is_ready_for(asked.model)
        files, freed = await self._keeper.shell.supervisor.kv.clear(asked.model)
        return {"files": files, "bytes": freed}

    async def _reload(self, asked: op.Reload) -> Answer:
        config = await in_own_thread(_read_config, asked)
        return dict(await self._keeper.changes.reload(config, self._clients.models_in_use))

    async def _take_in(self, asked: op.TakeIn) -> Answer:
        await self._keeper.changes.take_in(await in_own_thread(_read_models, asked))
        return {}

    def _stay(self, _: op.StayOp) -> Answer:
        self._clients.permanent = True
        return {"pid": os.getpid()}

    def _stop(self, _: op.Stop) -> Answer:
        self._clients.stop.set()
        return {"stopping": True, "pid": os.getpid()}


def _read_config(asked: op.Reload) -> Config:
    config = Config.from_mapping(asked.config, label=asked.label)
    config.remember(Path(asked.file) if asked.file else None, {})
    return config


def _read_models(asked: op.TakeIn) -> Config:
    config = Config.from_mapping({"models": asked.entries}, label=asked.label)
    config.remember(Path(asked.file) if asked.file else None, {}, read_at=asked.read_at)
    return config


_OPS: Final[dict[type[op.Asked], Callable[[Any, Any], Answer | Awaitable[Answer]]]] = {
    op.Hello: Client._hello,
    op.LeaseOp: Client._lease,
    op.End: Client._end,
    op.Yielded: Client._yielded,
    op.Pong: Client._pong,
    op.Diagnose: Client._diagnose,
    op.Hint: Client._hint,
    op.DeclareOp: Client._plan,
    op.Status: Client._status,
    op.WhatIfOp: Client._what_if,
    op.HistoryOf: Client._history,
    op.Capture: Client._capture,
    op.Log: Client._log,
    op.Kv: Client._kv,
    op.KvClear: Client._kv_clear,
    op.Reload: Client._reload,
    op.TakeIn: Client._take_in,
    op.StayOp: Client._stay,
    op.Stop: Client._stop,
}
