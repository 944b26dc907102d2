"""What the keeper does with engines that get no further, take too much, or are not there any more."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from backends.base import Signs, SlotSigns
from backends.scripted import ScriptedEngine
from budget.books.states import State
from budget.errors import EngineDied, EngineTimeout, KeepwarmError, OutOfMemory, error_from_wire
from shim.keeper.engines import liveness as liveness_module
from shim.keeper.engines.liveness import Liveness
from tests.races.support import Race, race, run

Files = dict[str, Path]
STUCK = Signs(cpu_s=1.0, slots=SlotSigns(1, moved=((7, 9, 9, 3),)))


def watcher(it: Race) -> Liveness:
    """The liveness of a race that looks when the test says so; each look is two seconds later."""
    it.keeper.background.change("watching engines", 3600.0)
    looks = itertools.count(1000, 2)
    return Liveness(it.keeper.shell, 30.0, lambda: float(next(looks)))


def error_of(it: Race, engine: str, generation: int) -> KeepwarmError | None:
    """The error that callers of an engine get for its end."""
    death = it.keeper.shell.supervisor.death_of(engine, generation)
    return error_from_wire(death) if death else None


def test_an_engine_that_is_stuck_is_replaced_and_the_waiting_model_served(
    tiny_models: Files,
) -> None:
    """Its caller gets an error with what was seen; a request that waited for its bytes gets them."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            held = await it.granted(it.ask("a"))
            waits = it.ask("b")
            it.engine("a").script.signs = [STUCK]
            watch = watcher(it)
            looks = 0
            while error_of(it, held.engine_id, held.generation) is None:
                await watch.look()
                looks += 1
            assert 30 <= 2 * (looks - 1) <= 34
            error = error_of(it, held.engine_id, held.generation)
            assert isinstance(error, EngineTimeout)
            assert error.facts["seen"] == "stuck"
            assert (await it.granted(waits)).engine_id != held.engine_id

    run(scenario)


def test_a_new_start_begins_with_a_clean_slate(
    tiny_models: Files,
) -> None:
    """What was seen before an engine's end does not count after its next start."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            first = await it.granted(it.ask("a"))
            it.engine("a").script.signs = [STUCK]
            watch = watcher(it)
            for _ in range(10):
                await watch.look()
            it.engine("a").kill()
            second = await it.granted(it.ask("a"))
            assert second.generation == first.generation + 1
            it.engine("a").script.signs = [STUCK]
            for _ in range(10):
                await watch.look()
            assert error_of(it, second.engine_id, second.generation) is None

    run(scenario)


def test_engines_that_leave_are_not_judged(
    tiny_models: Files,
) -> None:
    """Its state is saved, its process ended: it need not get on with anything."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            left = await it.granted(served := it.ask("a"))
            it.end(served)
            it.engine("a").stop_gate = gate = asyncio.Event()
            it.engine("a").script.signs = [Signs(reachable=False)]
            waits = it.ask("b")
            assert it.state("a") is State.EVICTING
            watch = watcher(it)
            for _ in range(5):
                await watch.look()
            gate.set()
            await it.granted(waits)
            assert error_of(it, left.engine_id, left.generation) is None

    run(scenario)


def test_an_idle_engine_is_asked_only_when_its_process_works(
    tiny_models: Files,
) -> None:
    """A question costs it little; nothing costs it less."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            await it.granted(served := it.ask("a"))
            it.end(served)
            engine, asked = it.engine("a"), []
            seconds = itertools.count(5, 5)

            async def signs(*, ask: bool) -> Signs:
                asked.append(ask)
                return Signs(cpu_s=next(seconds) if len(asked) > 2 else 0.0)

            engine.signs = signs  # type: ignore[method-assign]
            watch = watcher(it)
            for _ in range(4):
                await watch.look()
            assert asked == [False, False, False, True]

    run(scenario)


def test_what_the_server_asks_about_a_silent_client(
    tiny_models: Files,
) -> None:
    """Since when an engine that is leased has had nothing to do; None for one that works."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            held = await it.granted(it.ask("a"))
            watch = watcher(it)
            assert watch.idle_since(held.engine_id) is None
            it.engine("a").script.signs = [Signs(slots=SlotSigns(0))]
            await watch.look()
            assert watch.idle_since(held.engine_id) is not None
            it.engine("a").script.signs = [STUCK]
            await watch.look()
            assert watch.idle_since(held.engine_id) is None
            assert watch.idle_since("unknown") is None

    run(scenario)


@pytest.mark.parametrize(
    ("signs", "kind"),
    [
        (Signs(reachable=False, answers=False), EngineDied),
        (Signs(answers=False, cpu_s=5.0), EngineTimeout),
        (Signs(answers=False, cpu_s=5.0, stopped=True), EngineTimeout),
    ],
)
def test_an_engine_that_a_client_reports_is_checked_and_replaced(
    tiny_models: Files,
    signs: Signs,
    kind: type[KeepwarmError],
) -> None:
    """At the report, not after a time-out."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            held = await it.granted(it.ask("a"))
            it.engine("a").script.signs = [signs]
            await watcher(it).check_now(held.engine_id, held.generation)
            assert isinstance(error_of(it, held.engine_id, held.generation), kind)
            assert (await it.granted(it.ask("a"))).generation == held.generation + 1

    run(scenario)


def test_a_report_about_an_engine_that_is_well_ends_nothing(
    tiny_models: Files,
) -> None:
    """Nor does one about an earlier start, or about an engine that works and has no time to answer."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            held = await it.granted(it.ask("a"))
            watch = watcher(it)
            await watch.check_now(held.engine_id, held.generation)
            await watch.check_now(held.engine_id, held.generation + 1)
            await watch.check_now("unknown", 1)
            it.engine("a").script.signs = [
                Signs(answers=False, cpu_s=5.0),
                Signs(answers=False, cpu_s=5.5),
            ]
            await watch.check_now(held.engine_id, held.generation)
            assert it.state("a") is State.LEASED

    run(scenario)


def test_an_engine_that_takes_too_much_is_ended_and_others_are_not(
    tiny_models: Files,
) -> None:
    """Its callers get an error that names the bytes."""

    async def scenario() -> None:
        async with race(tiny_models, limit="500MB") as it:
            held = await it.granted(it.ask("a"))
            other = await it.granted(it.ask("b"))
            it.engine("a").script.overgrown = OutOfMemory("too much", booked_bytes=1, found_bytes=9)
            await watcher(it).weigh()
            error = error_of(it, held.engine_id, held.generation)
            assert isinstance(error, OutOfMemory)
            assert error.facts["found_bytes"] == 9
            assert error_of(it, other.engine_id, other.generation) is None
            assert it.state("b") is State.LEASED

    run(scenario)


def test_a_look_that_does_not_end_is_no_answer(
    tiny_models: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an engine waits for, the others are looked at."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            held = await it.granted(it.ask("a"))

            async def hangs(_self: ScriptedEngine, *, ask: bool) -> None:
                await asyncio.get_running_loop().create_future()

            monkeypatch.setattr(ScriptedEngine, "signs", hangs)
            monkeypatch.setattr(liveness_module, "LOOK_LIMIT_S", 0.01)
            watch = watcher(it)
            for _ in range(2):
                await watch.look()
            assert watch._detectors[held.engine_id][1].condition == "silent"

    run(scenario)


@pytest.mark.parametrize(("refused", "kind"), [(False, EngineDied), (True, OutOfMemory)])
def test_a_death_for_want_of_bytes_is_out_of_memory(
    tiny_models: Files, *, refused: bool, kind: type[KeepwarmError]
) -> None:
    """The error of an engine's callers has the reason that its last lines give."""

    async def scenario() -> None:
        async with race(tiny_models) as it:
            held = await it.granted(it.ask("a"))
            it.engine("a").kill("llama-server of a was ended by signal 6", out_of_memory=refused)
            assert (await it.granted(it.ask("a"))).generation == held.generation + 1
            error = error_of(it, held.engine_id, held.generation)
            assert type(error) is kind
            assert "signal 6" in error.message
            assert error.facts["log_tail"]

    run(scenario)
