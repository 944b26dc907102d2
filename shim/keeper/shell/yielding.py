"""The keeper's part in interrupting an answer for a request of higher priority."""

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
    """The progress of an interrupted answer by its client's count: tokens of prompt and answer."""

    prompt_tokens: int
    tokens: int

    def so_far(self, slot: tuple[int, ...]) -> list[int] | None:
        """The tokens of the slot that the client has seen; None when the slot has not all of them.

        The engine may have generated a token or two more before it stopped. If it stopped at once, its
        last token is not evaluated yet, and is missing here.
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
    """Save the engine's state of the answer; None if that fails, or the lease is not this client's."""
    engine = shell.core.state.leases.get(lease)
    if engine is None or engine.leases[lease].client_id != client_id:
        return None
    running = shell.supervisor.now.get(engine.engine_id)
    return await shell.supervisor.kv.park(running.engine, lease) if running is not None else None


async def _restore(shell: Shell, grant: act.Grant, parked: Parked) -> None:
    """Restore the engine's state of the answer. If that fails, the engine evaluates the tokens again."""
    running = shell.supervisor.now.get(grant.engine_id)
    if running is not None:
        await shell.supervisor.kv.unpark(running.engine, parked)


async def _again(shell: Shell, event: ev.LeaseYielded) -> act.Grant:
    granted: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def done(outcome: Outcome) -> None:
        if not granted.done():
            granted.set_result(outcome)

    shell.ask(event, done)
    outcome = await granted
    if isinstance(outcome, KeepwarmError):
        raise outcome
    return outcome
