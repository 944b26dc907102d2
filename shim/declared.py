"""Plans: a program says which models it will use next, in order, so that they are there in time."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Self

from backends.flows import run_blocking
from budget.errors import InvalidRequest, KeeperUnavailable, KeepwarmError

if TYPE_CHECKING:
    from shim.line import Line, Lines
    from shim.session import Session

_CURRENT: ContextVar[Plan | None] = ContextVar("keepwarm_plan", default=None)


class PlanBook:
    """The open plans of one session, and which of them a request belongs to."""

    def __init__(self) -> None:
        self._open: tuple[Plan, ...] = ()

    def opened(self, plan: Plan) -> None:
        """A plan holds a connection now."""
        if plan not in self._open:
            self._open = (*self._open, plan)

    def closed(self, plan: Plan) -> None:
        """A plan is withdrawn."""
        self._open = tuple(other for other in self._open if other is not plan)

    def name(self) -> str | None:
        """The plan that a request made here is a step of, or None.

        It is the one that this context entered; a thread without one belongs to the only open plan.
        """
        if not self._open:
            return None
        plan = _CURRENT.get()
        if plan in self._open:
            return plan.name if plan else None
        return self._open[0].name if len(self._open) == 1 else None

    def close(self) -> None:
        """Withdraw every plan."""
        for plan in self._open:
            plan.close()


class Plan:
    """The order of coming uses, from `with` to its end; `async with` does the same.

    Every request inside uses the next step of its model up. The plan lives at the keeper as long as
    the connection that this object holds.
    """

    def __init__(self, session: Session, models: Sequence[str] = ()) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._session = session
        self._models = _local(session, models)
        self._line: Line | None = None
        self._async_line: Line | None = None
        self._token: Token[Plan | None] | None = None

    def declare(self, models: Sequence[str]) -> None:
        """Replace what is left of the order.

        Raises:
            UnknownModel: one is not configured; the order before stands.
            KeepwarmError: no keeper could be reached.
        """
        self._line = run_blocking(self._tell(self._session.lines.flows, self._line, models))

    async def adeclare(self, models: Sequence[str]) -> None:
        """As `declare`, awaited; for a plan that was entered with `async with`."""
        lines = self._session.async_lines
        self._async_line = await self._tell(lines, self._async_line, models)

    async def _tell(self, lines: Lines, line: Line | None, models: Sequence[str]) -> Line | None:
        """Tell the keeper what is left; returns the connection that holds the plan from now on."""
        order = _local(self._session, models)
        if line is not None:
            try:
                await line.ask("plan", models=order, plan=self.name)
            except KeeperUnavailable:
                # The keeper is gone and the plan with it: the next one is told.
                line.close()
                line = None
        if line is None and order:
            line, _ = await lines.ask_keeping("plan", models=order, plan=self.name)
            self._session.plans.opened(self)
        return line

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
        line, self._line = self._line, None
        if line is not None:
            try:
                run_blocking(line.ask("plan", models=[], plan=self.name))
                self._session.lines.flows.give(line)
            except KeepwarmError:
                line.close()
        # An asynchronous connection left open is closed: its end withdraws the plan as well.
        async_line, self._async_line = self._async_line, None
        if async_line is not None:
            async_line.close()

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
        self.close()

    def _leave(self) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
            self._token = None


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
