"""Engines that the keeper ends by its own decision: what is said of them, and what comes next."""

from __future__ import annotations

import asyncio
from pathlib import Path

from budget.books.states import State
from budget.errors import EngineTimeout, error_from_wire
from tests.races.support import race, run

Files = dict[str, Path]


def test_an_engine_that_is_ended_by_decision_is_a_death_with_its_reason(
    tiny_models: Files,
) -> None:
    """Its lease is revoked with that error, its callers get the same error, the next request is served."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            lease = it.ask("a")
            grant = await it.granted(lease)
            shell = it.keeper.shell
            answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            shell.on_revoke = lambda request, error: answer.set_result((request, error.message))
            error = EngineTimeout("a made no progress for 30 s.")
            assert shell.supervisor.end(grant.engine_id, grant.generation, error)
            assert not shell.supervisor.end(grant.engine_id, grant.generation, error), "once"
            said = shell.supervisor.death_of(grant.engine_id, grant.generation)
            assert said is not None
            assert isinstance(error_from_wire(said), EngineTimeout)
            assert await answer == (lease, error.message)
            assert (await it.granted(it.ask("a"))).generation == grant.generation + 1

    run(scenario)


def test_a_later_start_of_an_engine_is_not_ended(tiny_models: Files) -> None:
    """A report about an engine that has ended, or is unknown, ends nothing."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            grant = await it.granted(it.ask("a"))
            supervisor = it.keeper.shell.supervisor
            error = EngineTimeout("late news")
            assert not supervisor.end(grant.engine_id, grant.generation + 1, error)
            assert not supervisor.end("unknown", 1, error)
            assert it.state("a") is State.LEASED

    run(scenario)
