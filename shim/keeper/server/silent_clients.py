"""Takes leases back from silent clients, after a question, if other requests wait."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

from backends.machine.processes import is_stopped
from budget import events as ev
from budget.books.engines import EngineRecord
from budget.errors import EngineTimeout
from shim.keeper.server.clients import Client, Clients

LOG = logging.getLogger("keepwarm.keeper")

ANSWER_LIMIT_S: Final = 10.0
"""How long a client may take to answer a ping, and no longer than `lease_timeout`."""


@dataclass(slots=True)
class _Question:
    """A lease whose client was asked whether it is alive, and the time of its last message before that."""

    asked_at: float
    heard_at: float | None = None


class SilentClients:
    """Takes back the leases of clients that are stopped or stuck.

    A client is asked about its lease when another request waits and the engine has worked on nothing for
    `lease_timeout` (so the client neither sent a request nor waits for an answer). A client that answers
    keeps its lease for another `lease_timeout`; one that does not answer within ten seconds loses it.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._keeper = clients.keeper
        self._questions: dict[str, _Question] = {}
        clients.on_pong = self._answered

    async def look(self) -> None:
        """Ask the clients of idle leases, and take back the leases whose clients did not answer."""
        now = time.monotonic()
        state = self._keeper.shell.core.state
        idle = self._idle(now) if len(state.queue) else {}
        self._questions = {r: q for r, q in self._questions.items() if r in idle}
        for request_id, (engine, client) in idle.items():
            question = self._questions.get(request_id)
            if question is None or self._is_due_again(question, now):
                self._questions[request_id] = _Question(now)
                client.send({"notice": "ping", "lease": request_id})
            elif question.heard_at is None and now - question.asked_at >= self._answer_limit_s:
                self._take(request_id, engine, client)

    def _idle(self, now: float) -> dict[str, tuple[EngineRecord, Client]]:
        """The leases on which nothing has happened for too long."""
        limit_s = self._keeper.config.keeper.lease_timeout
        found = {}
        for request_id, engine in self._keeper.shell.core.state.leases.items():
            since = self._keeper.liveness.idle_since(engine.engine_id)
            client = self._clients.by_id.get(engine.leases[request_id].client_id)
            if since is not None and now - since >= limit_s and client is not None:
                found[request_id] = (engine, client)
        return found

    @property
    def _answer_limit_s(self) -> float:
        return min(ANSWER_LIMIT_S, self._keeper.config.keeper.lease_timeout)

    def _is_due_again(self, question: _Question, now: float) -> bool:
        patience_s = self._keeper.config.keeper.lease_timeout
        return question.heard_at is not None and now - question.heard_at >= patience_s

    def _answered(self, client: Client, lease: str) -> None:
        question = self._questions.get(lease)
        if question is not None and lease in client.leases:
            question.heard_at = time.monotonic()

    def _take(self, request_id: str, engine: EngineRecord, client: Client) -> None:
        del self._questions[request_id]
        model = engine.leases[request_id].model
        timeout_s = self._keeper.config.keeper.lease_timeout
        LOG.warning(
            "the lease %s of %s is taken back: its client (process %s) does not answer and its engine"
            " has worked on nothing for over %g s, while others wait",
            request_id,
            model,
            client.pid,
            timeout_s,
        )
        error = EngineTimeout(
            f"The lease of {model} was taken back: for over {timeout_s:g} s this program neither sent a "
            f"request nor read an answer, and did not answer the keeper for {self._answer_limit_s:g} s, "
            "while other requests waited.",
            hint="Close streams that are not read to their end; [keeper] lease_timeout sets the patience.",
            model=model,
            lease=request_id,
        )
        self._keeper.shell.post(ev.LeaseTaken(request_id, error.to_wire()))
        self._give_up(client)

    def _give_up(self, silent: Client) -> None:
        """Close the connections of a silent program, so that its waiting requests are not granted in vain.

        When the program goes on, it asks again. If it is not stopped, only the one connection that did not
        answer is closed.
        """
        stopped = silent.pid is not None and is_stopped(silent.pid)
        for client in list(self._clients.by_id.values()):
            same = client is silent or (stopped and client.pid == silent.pid)
            if same and client.waits:
                client.drop()
