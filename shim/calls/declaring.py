"""DeclaredUses: a program says which models it will use next, in order, so that they are there in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Self

from backends.forks import renew_after_fork
from budget.errors import InvalidRequest, KeepwarmError

if TYPE_CHECKING:
    from shim.calls.session import Session
    from shim.wire.threads import BlockingConnection

_DROP_LIMIT_S = 1.0

_CURRENT: ContextVar[Plan | None] = ContextVar("keepwarm_plan", default=None)


class DeclaredUsesBook:
    """The open plans of one session, and which of them a request belongs to."""

    def __init__(self) -> None:
        self.open: tuple[Plan, ...] = ()

    def opened(self, plan: Plan) -> None:
        """A plan holds a connection now."""
        if plan not in self.open:
            self.open = (*self.open, plan)

    def closed(self, plan: Plan) -> None:
        """A plan is withdrawn."""
        self.open = tuple(other for other in self.open if other is not plan)

    def name(self) -> str | None:
        """The plan that a request made here is a step of, or None.

        It is the one that this context entered; a thread without one belongs to the only open plan.
        """
        plan = _CURRENT.get()
        if plan in self.open:
            return plan.name if plan else None
        return self.open[0].name if len(self.open) == 1 else None

    def drop(self) -> None:
        """End every plan with its connection."""
        plans, self.open = self.open, ()
        for plan in plans:
            plan.drop()


class Plan:
    """The order of coming uses, from `with` to its end; `async with` does the same.

    Every request inside uses the next step of its model up. The plan lives at the keeper as long as
    the connection that this object holds. Safe from any thread and any event loop; a forked child's
    requests are steps of its parent's plan, and what the child declares is a plan of its own.
    """

    def __init__(self, session: Session, models: Sequence[str] = ()) -> None:
        self._session = session
        self._models = _local(session, models)
        self._token: Token[Plan | None] | None = None
        self.name = ""
        self._begin_anew()
        renew_after_fork(self)

    def _begin_anew(self) -> None:
        self.name = _new_name()
        self._connection: BlockingConnection | None = None
        self._lock = threading.Lock()
        """Held while something is said on the connection, which is soon answered or given up."""

    def forked(self) -> None:
        """In a forked child: the connection is the parent's, and so is the lock."""
        self._connection, self._lock = None, threading.Lock()

    def declare(self, models: Sequence[str]) -> None:
        """Replace what is left of the order.

        Raises:
            UnknownModel: one is not configured; the order before stands.
            KeepwarmError: no keeper could be reached.
        """
        self._replace(_local(self._session, models))

    async def adeclare(self, models: Sequence[str]) -> None:
        """As `declare`, awaited."""
        await asyncio.to_thread(self.declare, models)

    def _replace(self, order: list[str]) -> None:
        if not self.name.startswith(f"{os.getpid()}-"):
            self._begin_anew()
        with self._lock:
            self._tell(order)

    def _tell(self, order: list[str]) -> None:
        """Tell the keeper what is left, on the connection that holds the plan from now on."""
        if (connection := self._connection) is not None:
            try:
                connection.ask("plan", models=order, plan=self.name)
            except KeepwarmError:
                if not connection.is_usable:
                    self._close_connection()
                if not connection.is_gone:
                    raise
                # The keeper is gone and the plan with it: the next one is told.
            else:
                if not order:
                    self._connection = None
                    self._session.connections.give(connection)
                return
        if order:
            self._connection, _ = self._session.connections.ask_keeping(
                "plan", models=order, plan=self.name
            )
            self._session.plans.opened(self)

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Requests of this context inside are steps of this plan."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def close(self) -> None:
        """Withdraw what is left of the plan. Idempotent."""
        self._session.plans.closed(self)
        # The end of the connection would withdraw it as well; asked for, it is withdrawn on return.
        with contextlib.suppress(KeepwarmError):
            self._replace([])

    def drop(self) -> None:
        """End the plan with its connection, which was interrupted: another thread is done with it soon."""
        if self._lock.acquire(timeout=_DROP_LIMIT_S):
            try:
                self._close_connection()
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        self.declare(self._models)
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *_failure: object) -> None:
        self._leave()
        self.close()

    async def __aenter__(self) -> Self:
        await self.adeclare(self._models)
        self._token = _CURRENT.set(self)
        return self

    async def __aexit__(self, *_failure: object) -> None:
        self._leave()
        await asyncio.to_thread(self.close)

    def _leave(self) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
            self._token = None


def _new_name() -> str:
    """A name that tells the process apart, and plans within it."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _local(session: Session, models: Sequence[str]) -> list[str]:
    """The models whose bytes are budgeted here; remote ones take none.

    Raises:
        InvalidRequest: it is one text instead of a list of names.
        UnknownModel: one is not configured.
    """
    if isinstance(models, str):
        raise InvalidRequest(
            f"A plan is a list of model names, not {models!r}.", hint=f'Write ["{models}"].'
        )
    return [name for name in models if not session.call(name, "", {}).remote]
