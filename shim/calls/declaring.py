"""Declared uses: a program declares which models it will use next, so that they are loaded in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any, Self

from backends.machine.forks import renew_after_fork
from budget.errors import InvalidRequest, KeepwarmError

if TYPE_CHECKING:
    from shim.calls.session import Session
    from shim.wire.threads import BlockingConnection

_DROP_LIMIT_S = 1.0

_CURRENT: ContextVar[Plan | None] = ContextVar("keepwarm_plan", default=None)


class DeclaredUsesBook:
    """The open declarations of one session; finds the one that a request belongs to."""

    def __init__(self) -> None:
        self.open: tuple[Plan, ...] = ()

    def opened(self, plan: Plan) -> None:
        """Add a declaration that has a connection."""
        if plan not in self.open:
            self.open = (*self.open, plan)

    def closed(self, plan: Plan) -> None:
        """Remove a declaration that is withdrawn."""
        self.open = tuple(other for other in self.open if other is not plan)

    def name(self) -> str | None:
        """The name of the declaration that a request of this context belongs to, or None.

        It is the one that the context entered; in a context without one it is the only open one.
        """
        plan = _CURRENT.get()
        if plan in self.open:
            return plan.name if plan else None
        return self.open[0].name if len(self.open) == 1 else None

    def drop(self) -> None:
        """End every declaration with its connection."""
        plans, self.open = self.open, ()
        for plan in plans:
            plan.drop()


class Plan:
    """The declared uses of a program, in order, from `with` to its end; `async with` does the same.

    Every request inside consumes its model's next declared use. The keeper keeps the declaration as long
    as the connection of this object is open. Safe from any thread and any event loop. A forked child's
    requests consume uses of its parent's declaration; the child's own declarations are separate.
    """

    def __init__(
        self, session: Session, models: Sequence[str] = (), *, any_order: bool = False
    ) -> None:
        self._session, self._any_order = session, any_order
        self._models = _local(session, models)
        self._token: Token[Plan | None] | None = None
        self.name = ""
        self._begin_anew()
        renew_after_fork(self)

    def _begin_anew(self) -> None:
        self.name = _new_name()
        self._connection: BlockingConnection | None = None
        self._given_up = False
        self._lock = threading.Lock()
        """Held during an op on the connection, which is bounded in time."""

    def forked(self) -> None:
        """In a forked child: the connection is the parent's, and so is the lock."""
        self._connection, self._lock = None, threading.Lock()

    def declare(self, models: Sequence[str]) -> None:
        """Replace the uses that are left.

        Raises:
            UnknownModel: one is not configured; the uses declared before still hold.
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
            if not (order and self._given_up):
                self._send(order)

    def _send(self, order: list[str]) -> None:
        """Send the uses that are left to the keeper, on the connection that holds the declaration."""
        fields: dict[str, Any] = {"models": order, "plan": self.name}
        if overridden := [model for model in order if model in self._session.overridden]:
            fields["overridden"] = overridden
        if self._any_order:
            fields["any_order"] = True
        if (connection := self._connection) is not None:
            try:
                connection.ask("plan", **fields)
            except BaseException as error:
                if not connection.is_usable:
                    self._close_connection()
                if not isinstance(error, KeepwarmError) or not connection.is_gone:
                    raise
                # The keeper is gone, and the declaration with it, so the next keeper gets it.
            else:
                if not order:
                    self._connection = None
                    self._session.connections.give(connection)
                return
        if order:
            self._connection, _ = self._session.connections.ask_keeping("plan", **fields)
            self._session.declarations.opened(self)

    def _close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Inside, requests of this context consume uses of this declaration."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)

    def close(self) -> None:
        """Withdraw the uses that are left. Idempotent."""
        self._session.declarations.closed(self)
        # Closing the connection would withdraw them, too, but perhaps only after this call returns.
        with contextlib.suppress(KeepwarmError):
            self._replace([])

    def drop(self) -> None:
        """End the declaration by closing its connection, which was interrupted and is soon free."""
        if self._lock.acquire(timeout=_DROP_LIMIT_S):
            try:
                self._close_connection()
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        try:
            self.declare(self._models)
            self._token = _CURRENT.set(self)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_failure: object) -> None:
        self._leave()
        self.close()

    async def __aenter__(self) -> Self:
        self._given_up = False
        try:
            await self.adeclare(self._models)
        except BaseException:
            # The thread that declares may not have begun, or be at it: it is not waited for.
            self._given_up = True
            asyncio.get_running_loop().run_in_executor(None, self.close)
            raise
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
    """A name that is unique to the process and to the declaration in it."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def no_name(model: object) -> InvalidRequest:
    """The error of a model that is not named by a text."""
    return InvalidRequest(
        f"A model is given by its name, not by {model!r:.60}, which is {type(model).__name__}.",
        hint='Write "MODEL", as the configuration has it; one model at a time.',
    )


def check_names(what: str, models: Sequence[str]) -> None:
    """Refuse what is no list of names. The letters of one name would be taken for names.

    Raises:
        InvalidRequest: it is one text, or nothing that can be gone through.
    """
    if isinstance(models, str) or not isinstance(models, Iterable):
        hint = f'Write ["{models}"].' if isinstance(models, str) else 'Write ["MODEL", ...].'
        raise InvalidRequest(f"{what} are a list of model names, not {models!r}.", hint=hint)


def _local(session: Session, models: Sequence[str]) -> list[str]:
    """The local models among these names; remote models take no bytes here.

    Raises:
        InvalidRequest: it is one text instead of a list of names.
        UnknownModel: one is not configured.
    """
    check_names("Declared uses", models)
    return [name for name in models if not session.call(name, "", {}, "load").remote]
