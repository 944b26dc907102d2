"""Whatever an action raises at whatever wait: the books balance, nothing is stuck, the next is served.

The actions are those of the core's own union, the waits are found by running: the first, the second, and
so on raise until a run passes in which none was left to raise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, get_args

import pytest

from budget import actions as act
from budget import events as ev
from budget.errors import KeepwarmError
from budget.settings import CoreSettings
from shim.keeper.catalog.catalog import Catalog
from shim.keeper.shell.yielding import Generated, yield_lease
from tests.keeper.shell.injection import (
    ERRORS,
    LIMIT_S,
    TALK,
    Begin,
    Bench,
    Cancel,
    Injector,
    bench,
    check_serves,
    listening,
    measured,
)

MAX_WAITS = 100


# One scenario for each action. What comes before its `yield` is there before anything fails.


async def load(it: Bench) -> Scene:
    """A model that is absent is asked for."""
    yield
    it.ask("a")


async def warm_load(it: Bench) -> Scene:
    """A model that left its conversation behind is asked for again."""
    await it.serve("b")
    await it.serve("a")
    yield
    it.ask("b")


async def swap(it: Bench) -> Scene:
    """A model takes the bytes of one that was used."""
    await it.serve("a")
    yield
    it.ask("b")


async def unload(it: Bench) -> Scene:
    """A model that was used is unloaded."""
    await it.serve("a")
    yield
    it.shell.post(ev.HintGiven("unload", "a"))


async def abandon(it: Bench) -> Scene:
    """A load that no request waits for any more makes room."""
    yield
    it.ask("a", "leaves")
    it.shell.post(ev.ClientGone("leaves"))
    it.ask("b")


async def deny(it: Bench) -> Scene:
    """A request names a model that is not configured."""
    yield
    it.ask("nothing")


async def revoke(it: Bench) -> Scene:
    """A leased engine crashes."""
    await it.granted(it.ask("a"))
    yield
    it.engine().kill()


async def interrupt(it: Bench) -> Scene:
    """A lease yields to a request of higher priority, and is granted again."""
    lease = await it.granted(it.ask("a", "low", priority=0, preemptible=True))
    it.engine().requests.append(TALK)
    yielding: list[asyncio.Task[Any]] = []

    def asked_to_yield(client: str, lease: str) -> None:
        answer = yield_lease(it.shell, client, lease, Generated(100, 1))
        yielding.append(asyncio.get_running_loop().create_task(answer))

    it.shell.on_yield = asked_to_yield
    yield
    first = it.ask("a", "high", priority=9)
    if not yielding:
        # It was not asked: it ends of its own, as any other.
        it.shell.post(ev.LeaseEnded(lease.request_id, "low"))
    it.shell.post(ev.LeaseEnded((await it.granted(first)).request_id, "high"))
    for answer in await asyncio.gather(*yielding, return_exceptions=True):
        if isinstance(answer, BaseException):
            it.raised.append(answer)
        else:
            it.shell.post(ev.LeaseEnded(answer[0].request_id, "low"))


async def deadline(it: Bench) -> Scene:
    """A request that has to wait has a deadline."""
    await it.granted(it.ask("a"))
    yield
    it.ask("a", deadline=asyncio.get_running_loop().time() + 3600)


async def shrink(it: Bench) -> Scene:
    """Other programs take what a leased engine lies on, and give it back."""
    await it.granted(it.ask("a"))
    yield
    for room in (1 << 20, 1 << 30):
        it.shell.post(measured(room))


async def stage(it: Bench) -> Scene:
    """The plan says that a model comes next."""
    yield
    it.shell.post(ev.UsesDeclared("c", ("a", "b")))


async def stop_staging(it: Bench) -> Scene:
    """A file that is being read is planned no more."""
    yield
    it.shell.post(ev.UsesDeclared("c", ("a",)))
    it.shell.post(ev.UsesDeclared("c", ()))


Scene = AsyncIterator[None]
Scenario = Callable[[Bench], Scene]

SCENARIOS: dict[type[Any], tuple[Scenario, ...]] = {
    act.Prepare: (swap,),
    act.StartLoad: (load, warm_load),
    act.Unload: (unload, abandon),
    act.StageFile: (stage,),
    act.StopStaging: (stop_staging,),
    act.Grant: (load,),
    act.Deny: (deny,),
    act.Revoke: (revoke,),
    act.AskYield: (interrupt,),
    act.SetTimer: (deadline,),
    act.Record: (swap,),
    act.Alert: (shrink,),
    act.LowMemory: (shrink,),
}
WAITING = sorted({scenario for found in SCENARIOS.values() for scenario in found}, key=str)
BEGINNING = [(kind, found[-1]) for kind, found in SCENARIOS.items()]


def test_every_action_of_the_core_has_a_scenario() -> None:
    """A new action has to be listed here."""
    # A fault is only noted, as its own test says.
    assert set(SCENARIOS) | {act.Fault} == set(get_args(act.Action))


@dataclass(frozen=True)
class Ran:
    """What came of a run with a failure in it."""

    lines: list[str]
    answered: list[BaseException]
    counted: int
    carried: set[type[Any]]


def run(
    scenario: Scenario, catalog: Catalog, injector: Injector, beginning: Begin | None = None
) -> Ran:
    """Run a scenario with a failure in it, and what comes after it without one."""
    begin = beginning or Begin()

    async def main() -> Ran:
        staging = scenario in (stage, stop_staging)
        settings = CoreSettings(prefetch="stage" if staging else "off")
        async with asyncio.timeout(LIMIT_S), bench(catalog, injector, settings) as it:
            scene = scenario(it)
            await anext(scene)
            await it.quiet()
            begin.around(it.shell)
            injector.armed = begin.armed = True
            await anext(scene, None)
            await it.quiet()
            injector.armed = begin.armed = False
            ran = Ran(list(lines.failures), it.raised, it.counted(), it.carried)
            await check_serves(it)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return ran

    with listening() as lines:
        return asyncio.run(main())


def check_said_once(
    ran: Ran, where: str, scenario: Scenario, raised: BaseException | None = None
) -> None:
    """One line, and one in the counts; or the client got an error, which is as good.

    How a load ends that was abandoned is of no interest, nor that a wait which goes on was cancelled.
    """
    if not ran.lines and (scenario is abandon or isinstance(raised, Cancel)):
        return
    unsaid = [error for error in ran.answered if not isinstance(error, KeepwarmError)]
    assert len(ran.lines) + len(unsaid) == 1 or (not ran.lines and ran.answered), f"{where}: {ran}"
    assert ran.counted == 1 or ran.answered or " failed: " in ran.lines[0], f"{where}: {ran}"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("scenario", WAITING, ids=lambda scenario: scenario.__name__)
def test_what_fails_at_any_wait_ends_as_the_core_waits_for(
    catalog: Catalog, scenario: Scenario, error: str
) -> None:
    """Then all is as if it had failed in good order, and one line says what happened."""
    for number in range(MAX_WAITS):
        injector = Injector(number, ERRORS[error])
        ran = run(scenario, catalog, injector)
        if not injector.hit:
            return
        check_said_once(ran, f"wait {number}, of {injector.hit}", scenario, ERRORS[error]())
    pytest.fail("the waits do not end")


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("error", [name for name in ERRORS if name != "cancel"])
@pytest.mark.parametrize(("kind", "scenario"), BEGINNING, ids=lambda one: one.__name__)
def test_an_action_that_fails_at_any_call_of_its_begin_ends_as_the_core_waits_for(
    catalog: Catalog, kind: type[Any], scenario: Scenario, error: str
) -> None:
    """What raises before there is a task is no other thing than what raises in one."""
    for number in range(MAX_WAITS):
        begin = Begin(number, ERRORS[error], kind)
        ran = run(scenario, catalog, Injector(0, None), begin)
        if not begin.hit:
            assert kind in ran.carried
            return
        check_said_once(ran, f"call {number}, of {begin.hit}", scenario)
    pytest.fail("the calls do not end")
