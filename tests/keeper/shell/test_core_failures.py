"""A core that fails at an event: its client gets an error, nothing is lost, the books are checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import pytest

from budget import actions as act
from budget import events as ev
from budget.books.states import State
from budget.errors import InternalError, KeepwarmError
from budget.settings import CoreSettings
from shim.keeper.catalog.catalog import Catalog
from shim.keeper.shell import actions_out as shell_module
from shim.keeper.shell.failed_actions import MUST_ARRIVE
from tests.keeper.shell.injection import LIMIT_S, Bench, Injector, bench, check_serves, listening

TIMES = 6


class Failing:
    """A core that fails so many times at each of these kinds of events, and changes nothing then."""

    def __init__(self, it: Bench, *kinds: type[Any], times: int = 1) -> None:
        self.left = dict.fromkeys(kinds, times)
        self._handle = it.shell.core.handle
        it.shell.core.handle = self.handle  # type: ignore[method-assign]

    def handle(self, event: ev.Event, now: float) -> list[act.Action]:
        """`BudgetCore.handle`, or a look-up of what is not there."""
        if self.left.get(type(event), 0) > 0:
            self.left[type(event)] -= 1
            raise KeyError("ghost")
        return self._handle(event, now)


@asynccontextmanager
async def opened(catalog: Catalog) -> AsyncIterator[Bench]:
    """A bench on which nothing but the core fails."""
    settings = CoreSettings(prefetch="stage")
    async with asyncio.timeout(LIMIT_S), bench(catalog, Injector(0, None), settings) as it:
        yield it


async def everything(it: Bench) -> None:
    """Every kind of event reaches the core once at least, unless one before it failed."""
    post = it.shell.deliver
    post(ev.Started())
    lease = it.asked("a", "low", priority=0, preemptible=True)
    await it.quiet()
    post(ev.UsesDeclared("low", ("a", "b", "a")))
    post(ev.DeviceMeasured("host", 1 << 30, 1 << 30, 0))
    it.asked("a", "high", priority=9)
    if lease is not None:
        _again(it, lease, "low")
    await it.quiet()
    post(ev.ClientGone("high"))
    await it.quiet()
    if lease is not None:
        post(ev.LeaseEnded(lease, "low"))
    waits = it.asked("b", "low")
    if waits is not None:
        post(ev.RequestCancelled(waits))
    post(ev.LeaseTaken("no lease", {"error": "Cancelled"}))
    post(ev.TimerDue())
    catalog = it.shell.supervisor.catalog
    for spec in catalog.specs():
        engine = it.shell.core.state.residents[spec.engine_id]
        post(ev.EngineEstimated(spec.engine_id, spec.options))
        post(ev.EngineMeasured(spec.engine_id, engine.generation, engine.bookings))
    post(ev.Reconfigured(catalog.models(), catalog.specs(), catalog.pools))
    await it.quiet()
    post(ev.HintGiven("unload", "a"))
    await it.quiet()
    await _crash(it)
    it.fail_load = True
    it.asked("a", "low")
    await it.quiet()
    it.fail_load = False
    post(ev.UsesDeclared("low", ("a",)))
    await it.quiet()


def _again(it: Bench, lease: str, client: str) -> None:
    try:
        it.shell.ask(ev.LeaseYielded(lease, client), lambda _: None)
    except KeepwarmError:
        it.shell.withdraw(lease, client)


async def _crash(it: Bench) -> None:
    it.asked("b", "low")
    await it.quiet()
    if it.engines:
        it.engine().kill()
    await it.quiet()


@pytest.mark.parametrize("kind", get_args(ev.Event), ids=lambda kind: kind.__name__)
def test_a_core_that_fails_at_an_event_once_goes_on(catalog: Catalog, kind: type[Any]) -> None:
    """Of whatever kind: what must arrive is given to it again, the next request is served."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            failing = Failing(it, kind)
            with listening() as lines:
                await everything(it)
            await it.shell.redeliver()
            await it.quiet()
            assert not failing.left[kind], "the scenario has no such event"
            assert sum("ghost" in line for line in lines.failures) == 1
            checked = it.shell.feed.checked()
            assert checked is not None
            assert checked["agree"], checked
            await check_serves(it)

    asyncio.run(scenario())


async def fails_to_load(it: Bench) -> None:
    """An engine cannot be loaded."""
    it.fail_load = True
    it.ask("a")
    await it.quiet()
    it.fail_load = False


async def leaves(it: Bench) -> None:
    """An engine is unloaded."""
    await it.serve("a")
    it.shell.post(ev.HintGiven("unload", "a"))


async def dies(it: Bench) -> None:
    """An engine crashes."""
    await it.serve("a")
    it.engine().kill()


async def is_staged(it: Bench) -> None:
    """A file is read ahead."""
    it.shell.post(ev.UsesDeclared("c", ("a",)))


async def ends(it: Bench) -> None:
    """A lease is given back."""
    grant = await it.granted(it.ask("a"))
    it.shell.post(ev.LeaseEnded(grant.request_id, "c"))


async def withdraws(it: Bench) -> None:
    """A request that waits is cancelled."""
    await it.granted(it.ask("a"))
    waits = it.asked("a", "other")
    assert waits is not None
    it.shell.post(ev.RequestCancelled(waits))


async def goes(it: Bench) -> None:
    """A client with a lease goes."""
    await it.granted(it.ask("a"))
    it.shell.post(ev.ClientGone("c"))


GIVING_BACK: dict[type[Any], Callable[[Bench], Awaitable[None]]] = {
    ev.LoadEndedBadly: fails_to_load,
    ev.UnloadFinished: leaves,
    ev.EngineGone: dies,
    ev.StageFinished: is_staged,
    ev.LeaseEnded: ends,
    ev.RequestCancelled: withdraws,
    ev.ClientGone: goes,
}


@pytest.mark.parametrize("kind", MUST_ARRIVE, ids=lambda kind: kind.__name__)
def test_what_gives_back_is_given_to_the_core_until_it_takes_it(
    catalog: Catalog, kind: type[Any]
) -> None:
    """An end, a cancel or a death that the core fails at again and again is not lost."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            failing = Failing(it, kind, times=TIMES)
            with listening() as lines:
                await GIVING_BACK[kind](it)
                await it.quiet()
                for left in range(TIMES - 1, -1, -1):
                    assert failing.left[kind] == left
                    await it.shell.redeliver()
                    await it.quiet()
            assert sum("ghost" in line for line in lines.failures) == 1
            assert it.shell.faults.rows()[0]["count"] == TIMES
            await check_serves(it)

    asyncio.run(scenario())


def test_a_request_that_meets_a_failure_of_the_core_gets_an_error_and_is_not_queued(
    catalog: Catalog,
) -> None:
    """Its client hears InternalError, once; it is not granted later."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            Failing(it, ev.RequestArrived)
            with pytest.raises(InternalError, match="ghost"):
                it.ask("a")
            assert not len(it.shell.core.state.queue)
            assert not it.shell._done
            await check_serves(it)

    asyncio.run(scenario())


def test_a_request_that_a_failing_core_left_in_its_queue_is_taken_out(catalog: Catalog) -> None:
    """Also where the core did not put everything back."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            handle = it.shell.core.handle

            def half(event: ev.Event, now: float) -> list[act.Action]:
                actions = handle(event, now)
                if isinstance(event, ev.RequestArrived):
                    it.shell.core.handle = handle  # type: ignore[method-assign]
                    raise KeyError("ghost")
                return actions

            await it.granted(it.ask("a"))
            it.shell.core.handle = half  # type: ignore[method-assign]
            with pytest.raises(InternalError):
                it.ask("a", "other")
            assert not len(it.shell.core.state.queue)
            await check_serves(it)

    asyncio.run(scenario())


def test_a_load_whose_success_the_core_does_not_take_ends_as_a_failure(catalog: Catalog) -> None:
    """Its engine is ended, its client gets an error; also where the core fails at the failure, too."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            Failing(it, ev.LoadFinished, ev.LoadEndedBadly)
            asked = it.ask("a")
            await it.quiet()
            assert not asked.done()
            assert not it.shell.supervisor.now, "its process is gone"
            await it.shell.redeliver()
            assert isinstance(await asked, InternalError)
            await check_serves(it)

    asyncio.run(scenario())


def test_a_timer_whose_ring_fails_rings_again(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request's deadline is kept all the same."""
    monkeypatch.setattr(shell_module, "RING_AGAIN_S", 0.0)

    async def scenario() -> None:
        async with opened(catalog) as it:
            await it.granted(it.ask("a"))
            failing = Failing(it, ev.TimerDue)
            soon = asyncio.get_running_loop().time() + 0.001
            late = await it.ask("a", "other", deadline=soon)
            assert type(late).__name__ == "DeadlineExceeded"
            assert not failing.left[ev.TimerDue]

    asyncio.run(scenario())


def test_a_grant_that_cannot_be_reported_is_over_and_its_client_hears_why(catalog: Catalog) -> None:
    """The lease has no holder, so it is given back; the client is not left waiting."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            heard: list[Any] = []

            def done(outcome: act.Grant | KeepwarmError) -> None:
                heard.append(outcome)
                if isinstance(outcome, act.Grant):
                    raise ValueError("it cannot be encoded")

            it.shell.ask(ev.RequestArrived("q", "c", "a"), done)
            await it.quiet()
            assert [type(outcome).__name__ for outcome in heard] == ["Grant", "InternalError"]
            assert set(it.states().values()) == {State.IDLE, State.ABSENT}
            await check_serves(it)

    asyncio.run(scenario())


def test_books_that_do_not_agree_after_a_failure_are_shown(catalog: Catalog) -> None:
    """The check's finding is in the status and in the counts."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            Failing(it, ev.Started)
            assert it.shell.feed.checked() is None

            def validate() -> None:
                raise InternalError("12 bytes too many")

            it.shell.core.validate = validate  # type: ignore[method-assign]
            assert not it.shell.deliver(ev.Started())
            checked = it.shell.feed.checked()
            assert checked is not None
            assert (checked["agree"], "12 bytes" in checked["text"]) == (False, True)
            assert {row["kind"] for row in it.shell.faults.rows()} == {"core", "books"}

    asyncio.run(scenario())


def test_no_event_counts_once_the_keeper_ends(catalog: Catalog) -> None:
    """What clients leave behind begins no load, and a request hears that the keeper ends."""

    async def scenario() -> None:
        async with opened(catalog) as it:
            await it.granted(it.ask("a"))
            it.ask("b", "other")
            it.shell.close()
            it.shell.post(ev.ClientGone("c"))
            assert len(it.engines) == 1
            with pytest.raises(KeepwarmError, match="keeper ends"):
                it.ask("b", "third")

    asyncio.run(scenario())


def test_a_fault_inside_the_core_is_said_and_counted_and_the_request_is_served(
    catalog: Catalog,
) -> None:
    """The policy raises at an eviction: recency decides, one line says so, and the books agree."""

    def fails(*_: object) -> list[float]:
        raise ZeroDivisionError("ghost")

    async def scenario() -> None:
        async with opened(catalog) as it:
            await it.serve("a")
            it.shell.core.state.policy.trusted.losses = fails  # type: ignore[method-assign, assignment]
            with listening() as lines:
                await it.serve("b")
            assert [("the policy's judgement" in line) for line in lines.failures] == [True]
            checked = it.shell.feed.checked()
            assert checked is not None
            assert checked["agree"], checked
            assert it.counted() == 1
            await check_serves(it)

    asyncio.run(scenario())
