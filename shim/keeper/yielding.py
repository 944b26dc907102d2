"""An answer that is interrupted for a request of higher priority, seen from the keeper."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from budget import actions as act
from budget import events as ev
from budget.errors import KeepwarmError
from shim.keeper.life import Outcome
from shim.keeper.shell import Shell


@dataclass(frozen=True, slots=True)
class Generated:
    """How far an interrupted answer had come, as its client counted: tokens of prompt and answer."""

    prompt_tokens: int
    tokens: int

    def so_far(self, slot: tuple[int, ...]) -> list[int] | None:
        """The tokens of the slot that the client has seen; None when the slot has not all of them.

        The engine may have gone on for a token or two until it noticed. What it said last it has not
        evaluated yet when it noticed at once: then that one is missing.
        """
        total = self.prompt_tokens + self.tokens
        return list(slot[:total]) if self.prompt_tokens > 0 and len(slot) >= total - 1 else None


async def yield_lease(
    shell: Shell, client_id: str, lease: str, generated: Generated
) -> tuple[act.Grant, list[int] | None]:
    """Give a lease back, and wait until it is granted again.

    Returns:
        The grant, and all tokens so far (the last may be missing), None where the engine's state
        could not be saved.

    Raises:
        KeepwarmError: the request ends here.
    """
    engine = shell.core.desk.leases.get(lease)
    life = shell.lives.now.get(engine.engine_id) if engine is not None else None
    parked = await shell.lives.kv.park(life.engine, lease) if life is not None else None
    granted: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(outcome: Outcome) -> None:
        if not granted.done():
            granted.set_result(outcome)

    try:
        shell.ask_again(ev.LeaseYielded(lease, client_id), done)
        outcome = await granted
        if isinstance(outcome, KeepwarmError):
            raise outcome
        if parked is not None:
            await shell.lives.kv.unpark(shell.lives.now[outcome.engine_id].engine, parked)
        return outcome, generated.so_far(parked.tokens if parked else ())
    finally:
        if parked is not None:
            parked.shelf.drop(parked.name)
