"""Events that cross each other on their way through the keeper: gates decide, no clock does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from budget import events as ev
from budget.books.states import State
from budget.errors import Cancelled, InvalidRequest, KeepwarmError, LoadFailed
from tests.races.support import LIMIT_S, race, run

Files = dict[str, Path]


def test_an_arrival_during_its_models_eviction_waits_for_the_next_start(tiny_models: Files) -> None:
    """It neither revives what is leaving nor gets lost."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            first = it.ask("a")
            await it.granted(first)
            it.end(first)
            it.close_stop("a")
            it.engine("a").stop_gate = it.stops["a"]
            for_b = it.ask("b")
            await it.engine("a").stopping.wait()
            again = it.ask("a")
            assert it.state("a") is State.EVICTING
            assert it.waits(for_b)
            it.stops["a"].set()
            await it.granted(for_b)
            assert it.waits(again)
            it.end(for_b)
            assert (await it.granted(again)).generation == 2
            assert it.started() == ["a", "b", "a"]

    run(scenario)


def test_an_unload_is_over_although_the_next_start_begins_at_once(tiny_models: Files) -> None:
    """Requests that wait for the model bring it back; the operator's unload command hears of the end."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            first = it.ask("a")
            await it.granted(first)
            it.post(ev.HintGiven("unload", "a"))
            again = it.ask("a")
            leaving = asyncio.ensure_future(it.keeper.until_gone("a", LIMIT_S))
            await asyncio.sleep(0)
            it.end(first)
            assert (await it.granted(again)).generation == 2
            assert await leaving
            it.end(again)

    run(scenario)


def test_a_cancel_during_a_load_keeps_the_load_and_gives_it_up_for_another(
    tiny_models: Files,
) -> None:
    """No request waits for it; another request gets its bytes, and only when they are free."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            it.close_load("a")
            gone = it.ask("a")
            it.post(ev.RequestCancelled(gone))
            with pytest.raises(Cancelled):
                await it.granted(gone)
            assert it.state("a") is State.LOADING
            for_b = it.ask("b")
            assert it.state("a") is State.EVICTING
            assert it.started() == ["a"]
            await it.granted(for_b)
            assert it.started() == ["a", "b"]
            assert it.state("a") is State.ABSENT

    run(scenario)


def test_a_death_during_a_load_ends_the_wait_and_gives_the_bytes_back(tiny_models: Files) -> None:
    """The next in line loads at once."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            it.close_load("a")
            it.failing.add("a")
            for_a, for_b = it.ask("a"), it.ask("b")
            it.loads["a"].set()
            with pytest.raises(LoadFailed):
                await it.granted(for_a)
            await it.granted(for_b)
            assert it.state("a") is State.FAILED

    run(scenario)


def test_a_death_during_a_lease_and_the_lease_given_back_after_it(tiny_models: Files) -> None:
    """The late message of a client that did not know yet is no error; a second one is."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            lease = it.ask("a")
            await it.granted(lease)
            waiting = it.ask("b")
            it.engine("a").kill()
            await it.granted(waiting)
            it.end(lease)
            with pytest.raises(InvalidRequest):
                it.end(lease)

    run(scenario)


def test_a_release_during_a_lease_moves_nothing_until_it_ends(tiny_models: Files) -> None:
    """Then the model is the first to go, before one that was used longer ago."""

    async def scenario() -> None:
        async with race(tiny_models, "56MB") as it:
            old = it.ask("b")
            await it.granted(old)
            it.end(old)
            lease = it.ask("a")
            await it.granted(lease)
            it.post(ev.HintGiven("release", "a"))
            assert it.state("a") is State.LEASED
            it.end(lease)
            for_c = it.ask("c")
            await it.granted(for_c)
            assert it.state("a") is State.ABSENT
            assert it.state("b") is State.IDLE

    run(scenario)


def test_a_double_release_is_refused_and_changes_nothing(tiny_models: Files) -> None:
    """Another request's lease on the same slot is not ended by it."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            first, second = it.ask("a"), it.ask("a")
            await it.granted(first)
            it.end(first)
            await it.granted(second)
            with pytest.raises(KeepwarmError):
                it.end(first)
            with pytest.raises(KeepwarmError):
                it.end(second, "another client")
            assert it.state("a") is State.LEASED
            it.end(second)
            assert it.state("a") is State.IDLE

    run(scenario)


def test_two_loads_never_claim_the_same_bytes(tiny_models: Files) -> None:
    """The second begins when the first one's bytes are back, not when they are promised."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            it.close_load("a")
            for_a, for_b = it.ask("a"), it.ask("b", "other")
            assert it.started() == ["a"]
            it.loads["a"].set()
            await it.granted(for_a)
            assert it.waits(for_b)
            it.close_stop("a")
            it.engine("a").stop_gate = it.stops["a"]
            it.end(for_a)
            await it.engine("a").stopping.wait()
            assert it.started() == ["a"], "its bytes are still held"
            it.stops["a"].set()
            await it.granted(for_b)

    run(scenario)


def test_a_request_takes_the_bytes_of_a_prefetch(tiny_models: Files) -> None:
    """The prefetch is abandoned, and what it read is counted as wasted."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            it.close_load("a")
            it.post(ev.UsesDeclared("planner", ("a",)))
            assert it.state("a") is State.LOADING
            for_b = it.ask("b")
            assert it.state("a") is State.EVICTING
            await it.granted(for_b)
            counts = it.keeper.status()["prefetch"]
            assert counts["wasted_bytes"] > 0
            assert it.started() == ["a", "b"]

    run(scenario)


def test_a_request_joins_the_prefetch_of_its_own_model(tiny_models: Files) -> None:
    """One load, and the next step of the plan is not fetched into its bytes."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            it.close_load("a")
            it.post(ev.UsesDeclared("planner", ("a", "b")))
            asked = it.ask("a", "planner")
            it.loads["a"].set()
            await it.granted(asked)
            assert it.started() == ["a"]
            counts = it.keeper.status()["prefetch"]
            assert (counts["used"], counts["wasted_bytes"]) == (1, 0)

    run(scenario)


def test_a_planner_that_leaves_during_its_prefetch_leaves_an_idle_model(tiny_models: Files) -> None:
    """The load is paid for and ends; the model is a victim like any other."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            it.close_load("a")
            it.post(ev.UsesDeclared("planner", ("a",)))
            it.post(ev.ClientGone("planner"))
            asked = it.ask("a")
            it.loads["a"].set()
            await it.granted(asked)
            it.end(asked)
            assert it.started() == ["a"]
            assert it.keeper.status()["plans"] == {}

    run(scenario)


def test_a_start_overlaps_with_the_end_of_its_victim(tiny_models: Files) -> None:
    """What a start does before it takes bytes is done while the victim's process still ends."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            may_end = await it.idle_until_told("a")
            for_b = it.ask("b")
            await it.engine("a").stopping.wait()
            assert it.engine("b").prepared is not None
            assert it.started() == ["a"]
            may_end.set()
            await it.granted(for_b)
            assert len(it.engines) == 2

    run(scenario)


def test_what_was_prepared_for_nobody_any_more_ends(tiny_models: Files) -> None:
    """A request withdrawn while its model's bytes are being freed leaves no process behind."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            may_end = await it.idle_until_told("a")
            for_b = it.ask("b")
            await it.engine("a").stopping.wait()
            it.post(ev.RequestCancelled(for_b))
            await it.engine("b").stopping.wait()
            may_end.set()
            await it.granted(it.ask("c"))
            assert it.started() == ["a", "c"]

    run(scenario)
