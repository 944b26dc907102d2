"""The keeper's measurements: what is not known is not 0, and what fails is tried again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from budget import events as ev
from budget.books.states import State
from budget.errors import MeasurementFailed, OutOfMemory
from budget.footprint import HOST
from shim.keeper.engines import monitor as monitor_module
from shim.keeper.engines.monitor import Monitor
from shim.keeper.keeper import Keeper
from tests.races.support import LIMIT_S, Race, race, run

Files = dict[str, Path]


def monitor_of(keeper: Keeper) -> Monitor:
    """A monitor that measures when the test says so."""
    return Monitor(keeper.shell, keeper.policy)


async def one_idle(it: Race) -> int:
    """Load `a` and let it be idle; its booked bytes."""
    lease = it.ask("a")
    grant = await it.granted(lease)
    it.end(lease)
    return dict(it.keeper.shell.core.state.residents[grant.engine_id].bookings)[HOST]


def test_a_full_device_whose_engines_cannot_be_measured_is_not_over_its_limit(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is booked is ours then: the idle engine is not evicted for bytes that it takes itself."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            booked = await one_idle(it)
            it.engine("a").script.memory = {HOST: None}
            limit = it.keeper.catalog.limits[HOST]
            monkeypatch.setattr(monitor_module, "free_bytes", lambda _device: limit - booked)
            await monitor_of(it.keeper).measure()
            assert it.state("a") is State.IDLE
            assert it.keeper.shell.core.state.residents.books[HOST].ceiling_bytes == limit

    run(scenario)


def test_bytes_of_another_program_count_where_engines_cannot_be_measured(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device has nothing left beside what is booked: the engine's own bytes are all the room."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            booked = await one_idle(it)
            it.engine("a").script.memory = {HOST: None}
            monkeypatch.setattr(monitor_module, "free_bytes", lambda _device: 0)
            await monitor_of(it.keeper).measure()
            assert it.keeper.shell.core.state.residents.books[HOST].ceiling_bytes == booked

    run(scenario)


def test_a_device_that_says_nothing_is_not_judged(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No free figure: the core gets an event that says so, and no engine is evicted."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            await one_idle(it)
            monkeypatch.setattr(monitor_module, "free_bytes", lambda _device: None)
            posted: list[ev.Event] = []
            monkeypatch.setattr(it.keeper.shell, "post", posted.append)
            await monitor_of(it.keeper).measure()
            monkeypatch.undo()
            answer = [event for event in posted if isinstance(event, ev.DeviceMeasured)]
            assert [(t.device, t.available_bytes, t.free_bytes) for t in answer] == [
                (HOST, None, None)
            ]
            for event in answer:
                it.post(event)
            assert it.state("a") is State.IDLE

    run(scenario)


def test_what_is_free_is_read_before_what_engines_take(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that grows between both readings must not look like another program."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            await one_idle(it)
            order: list[str] = []

            def free(_device: str) -> int:
                order.append("free")
                return 1 << 30

            def memory() -> Mapping[str, int | None]:
                order.append("taken")
                return {HOST: 1}

            monkeypatch.setattr(monitor_module, "free_bytes", free)
            monkeypatch.setattr(it.engine("a"), "memory", memory)
            await monitor_of(it.keeper).measure()
            assert order == ["free", "taken"]

    run(scenario)


def test_a_reading_that_hangs_is_waited_for_once_and_tells_nothing_meanwhile(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that does not return holds one thread, and no decision."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            await one_idle(it)
            returns, asked = threading.Event(), []

            def free(_device: str) -> int:
                asked.append(1)
                returns.wait()
                return 1 << 30

            monkeypatch.setattr(monitor_module, "free_bytes", free)
            monkeypatch.setattr(monitor_module, "READ_LIMIT_S", 0.01)
            monitor = monitor_of(it.keeper)
            try:
                for _ in range(2):
                    with pytest.raises(MeasurementFailed):
                        await monitor.measure()
            finally:
                returns.set()
            assert it.state("a") is State.IDLE
            monkeypatch.setattr(monitor_module, "READ_LIMIT_S", 30.0)
            await monitor.measure()
            assert len(asked) == 1

    run(scenario)


def test_what_an_engine_takes_in_the_middle_of_a_request_is_booked_and_not_learned(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runaway chat template would be booked for every load to come."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            lease = it.ask("a")
            grant = await it.granted(lease)
            supervisor, engine = it.keeper.shell.supervisor, grant.engine_id
            booked = dict(it.keeper.shell.core.state.residents[engine].bookings)[HOST]
            it.engine("a").script.memory = {HOST: booked + (1 << 20)}
            taught: list[str] = []
            monkeypatch.setattr(
                supervisor, "learn", lambda name, _running, _found: taught.append(name)
            )
            monitor = monitor_of(it.keeper)
            await monitor.measure()
            now = it.keeper.shell.core.state.residents[engine]
            assert dict(now.bookings)[HOST] == booked, (
                "one reading may be of an engine that is ended"
            )
            await monitor.measure()
            assert dict(now.bookings)[HOST] == booked + (1 << 20)
            assert taught == []
            it.end(lease)
            await monitor.measure()
            assert taught == [engine]

    run(scenario)


def test_an_engine_that_takes_more_of_a_gpu_than_it_may_is_ended(tiny_models: Files) -> None:
    """At rest, too; what it takes is then neither booked nor learned."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            lease = it.ask("a")
            grant = await it.granted(lease)
            it.end(lease)
            it.engine("a").script.overgrown = OutOfMemory("too much", found_bytes=9)
            await monitor_of(it.keeper).measure()
            death = it.keeper.shell.supervisor.death_of(grant.engine_id, grant.generation)
            assert death is not None
            assert death["error"] == "OutOfMemory"

    run(scenario)


def test_an_engine_that_cannot_be_measured_costs_nothing_but_its_own_figures(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its measuring raises: it is unknown, it is noted, and the others are measured."""

    async def scenario() -> None:
        async with race(tiny_models, limit="500MB") as it:
            first = await it.granted(it.ask("a"))
            second = await it.granted(it.ask("b"))

            def broken() -> Mapping[str, int | None]:
                raise RuntimeError("no figures")

            monkeypatch.setattr(it.engine("a"), "memory", broken)
            monitor = monitor_of(it.keeper)
            await monitor.measure()
            now = it.keeper.shell.supervisor.now
            assert monitor.measured(first.engine_id, now[first.engine_id]) == {HOST: None}
            assert monitor.measured(second.engine_id, now[second.engine_id]) != {HOST: None}
            kinds = [row["kind"] for row in it.keeper.shell.faults.rows()]
            assert kinds == ["memory"]

    run(scenario)


def test_who_looks_does_not_wait_for_a_driver_that_hangs(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`keepwarm ps` shows what was read last."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            grant = await it.granted(it.ask("a"))
            running = it.keeper.shell.supervisor.now[grant.engine_id]
            monitor = monitor_of(it.keeper)
            assert monitor.measured(grant.engine_id, running) is None
            await monitor.refresh()
            before = monitor.measured(grant.engine_id, running)
            assert before
            returns = threading.Event()
            monkeypatch.setattr(monitor_module, "free_bytes", lambda _device: returns.wait())
            monkeypatch.setattr(monitor_module, "GLANCE_LIMIT_S", 0.01)
            try:
                await monitor.refresh()
            finally:
                returns.set()
            assert monitor.measured(grant.engine_id, running) == before

    run(scenario)


@pytest.mark.parametrize("found_by", ["the reading itself", "a look before it", "a look during it"])
def test_others_stay_while_an_engine_that_takes_too_much_is_ended(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    """The device is short because of that engine alone, until its process is gone."""

    async def scenario() -> None:
        async with race(tiny_models, limit="500MB") as it:
            await one_idle(it)
            held = await it.granted(it.ask("b"))
            it.close_stop("b")
            it.engine("b").stop_gate = it.stops["b"]
            supervisor, books = (
                it.keeper.shell.supervisor,
                it.keeper.shell.core.state.residents.books,
            )
            limit, monitor = books[HOST].limit_bytes, monitor_of(it.keeper)
            loop, error = asyncio.get_running_loop(), OutOfMemory("too much", found_bytes=9)

            def end() -> None:
                supervisor.end(held.engine_id, held.generation, error)

            def free(_device: str) -> int:
                if found_by == "a look during it":
                    loop.call_soon_threadsafe(end)
                return 0

            if found_by == "the reading itself":
                it.engine("b").script.overgrown = error
            elif found_by == "a look before it":
                end()
            it.engine("b").script.memory = {}
            monkeypatch.setattr(monitor_module, "free_bytes", free)
            await monitor.measure()
            assert held.engine_id in supervisor.now
            assert books[HOST].ceiling_bytes == limit
            assert it.state("a") is State.IDLE
            it.stops["b"].set()
            assert await supervisor.until_gone(held.engine_id, LIMIT_S)
            await monitor.measure()
            assert books[HOST].ceiling_bytes < limit, "what is short now is so without that engine"

    run(scenario)
