"""An answer that is interrupted for a request of higher priority, seen from the keeper."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from budget import actions as act
from budget import events as ev
from budget.errors import KeepwarmError
from shim.keeper.engines.running_engine import Outcome
from shim.keeper.kv.carry import Parked
from shim.keeper.shell.actions_out import Shell


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
    parked: Parked | None = None
    grant: act.Grant | None = None
    try:
        parked = await _parked(shell, client_id, lease)
        grant = await _again(shell, ev.LeaseYielded(lease, client_id))
        if parked is not None:
            await _restore(shell, grant, parked)
        return grant, generated.so_far(parked.tokens if parked else ())
    except BaseException as error:
        refused = isinstance(error, KeepwarmError) and grant is None
        if not refused:
            shell.withdraw(lease, client_id)
        raise
    finally:
        if parked is not None:
            parked.engine_folder.drop(parked.name)


async def _parked(shell: Shell, client_id: str, lease: str) -> Parked | None:
    """Save what the engine holds of the answer; None where that fails, or it is not this client's."""
    engine = shell.core.state.leases.get(lease)
    if engine is None or engine.leases[lease].client_id != client_id:
        return None
    running = shell.supervisor.now.get(engine.engine_id)
    return await shell.supervisor.kv.park(running.engine, lease) if running is not None else None


async def _restore(shell: Shell, grant: act.Grant, parked: Parked) -> None:
    """Give the engine back what it held; where that fails it evaluates the tokens again."""
    running = shell.supervisor.now.get(grant.engine_id)
    if running is not None:
        await shell.supervisor.kv.unpark(running.engine, parked)


async def _again(shell: Shell, event: ev.LeaseYielded) -> act.Grant:
    granted: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(outcome: Outcome) -> None:
        if not granted.done():
            granted.set_result(outcome)

    shell.ask_again(event, done)
    outcome = await granted
    if isinstance(outcome, KeepwarmError):
        raise outcome
    return outcome
