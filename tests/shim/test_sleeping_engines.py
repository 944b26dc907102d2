"""Engines that sleep instead of ending: woken by their next request, in no other request's way."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from backends.scripted import Script
from shim import Shim
from shim.keeper.engines.sleepers import Sleepers
from tests.processes import wait_until
from tests.shim.conftest import Stage

LIMIT = 40 * 10**6
"""Room for one of the two models."""
HELD = 4 << 20


@pytest.fixture
def stage(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    """Two models of which one fits at a time, under a keeper that looks often and has learned nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("shim.keeper.keeper.MEASURE_EVERY_S", 0.05)
    models = {"a": tiny_models["classifier"], "b": tiny_models["producer"]}
    config = {
        "budget": {"device": "host", "limit": LIMIT},
        "models": {name: {"path": str(path), "context": 1024} for name, path in models.items()},
    }
    made = Stage.__new__(Stage)
    made.scripts, made.engines = {}, []
    made.shim = Shim(config, factory=made.make)
    with made.shim:
        yield made


def asleep(stage: Stage) -> list[str]:
    """The models whose engines are asleep."""
    return [name for row in stage.shim.status()["asleep"] for name in row["models"]]


def test_an_evicted_engine_that_sleeps_is_woken_by_its_next_request(stage: Stage) -> None:
    """The same process serves again; to its callers the model was away and is back."""
    stage.scripts["a"] = Script(asleep={"host": HELD})
    stage.shim.chat("a", "hello")
    stage.shim.chat("b", "hello")
    first = stage.engines[0]
    assert asleep(stage) == ["a"]
    assert first.asleep
    reply = stage.shim.chat("a", "hello")
    assert reply.residency.cold
    assert asleep(stage) == []
    assert len(stage.engines) == 2
    assert len(first.requests) == 2


def test_an_engine_is_not_ended_in_its_sleep_for_its_own_request(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the other model leaves for it, its bytes are short; the keeper looks twice meanwhile."""
    stage.scripts["a"] = Script(asleep={"host": HELD})
    stage.shim.chat("a", "hello")
    stage.shim.chat("b", "hello")
    first, leaving = stage.engines
    looked, look, stop = asyncio.Queue[None](), Sleepers.look, leaving.stop

    def look_told(sleepers: Sleepers, low: Collection[str]) -> None:
        look(sleepers, low)
        looked.put_nowait(None)

    async def stop_late(*, grace_s: float) -> None:
        while not looked.empty():
            looked.get_nowait()
        for _ in range(2):
            await looked.get()
        await stop(grace_s=grace_s)

    monkeypatch.setattr(Sleepers, "look", look_told)
    leaving.stop = stop_late  # type: ignore[method-assign]
    assert stage.shim.chat("a", "hello").residency.cold
    assert stage.engines == [first, leaving]


def test_a_sleeping_engine_is_absent_for_the_core_and_what_it_holds_is_taken(stage: Stage) -> None:
    """No request is sent to it, and nothing else is given the bytes that it holds."""
    stage.scripts["a"] = Script(asleep={"host": HELD})
    stage.shim.chat("a", "hello")
    stage.shim.chat("b", "hello")
    status = stage.shim.status()
    states = {row["models"][0]: row["state"] for row in status["engines"]}
    assert states == {"a": "absent", "b": "idle"}
    (device,) = status["devices"]
    assert device["ceiling_bytes"] <= LIMIT - HELD
    stage.shim.chat("a", "hello")
    assert stage.shim._session._keeper is not None
    (device,) = stage.shim.status()["devices"]
    assert device["ceiling_bytes"] == LIMIT


def test_an_engine_that_a_client_unloads_does_not_stay_asleep(stage: Stage) -> None:
    """Its bytes were wanted back, on every device."""
    stage.scripts["a"] = Script(asleep={"host": HELD})
    stage.shim.chat("a", "hello")
    stage.shim.unload("a")
    assert asleep(stage) == []
    assert not stage.engines[0].asleep


def test_one_that_is_in_the_way_of_a_waiting_request_is_ended(stage: Stage) -> None:
    """It holds so much that the next model does not fit beside it."""
    stage.scripts["a"] = Script(asleep={"host": LIMIT - 10**6})
    stage.shim.chat("a", "hello")
    assert stage.shim.chat("b", "hello").content
    assert asleep(stage) == []


def test_an_engine_that_cannot_fall_asleep_is_ended(stage: Stage) -> None:
    """Its eviction goes on as that of any other."""
    stage.scripts["a"] = Script()
    stage.shim.chat("a", "hello")
    failing = stage.engines[0]

    async def fail() -> None:
        raise OSError("no answer")

    failing.sleep = fail  # type: ignore[method-assign]
    assert stage.shim.chat("b", "hello").content
    assert asleep(stage) == []
    assert stage.shim.status()["keeper"]["faults"]


def test_a_keeper_that_ends_ends_those_that_sleep(stage: Stage) -> None:
    """Nothing sleeps without a keeper that could wake it."""
    stage.scripts["a"] = Script(asleep={"host": HELD})
    stage.shim.chat("a", "hello")
    stage.shim.chat("b", "hello")
    engine, stopped = stage.engines[0], []
    stop = engine.stop

    async def stop_noted(*, grace_s: float) -> None:
        stopped.append(engine)
        await stop(grace_s=grace_s)

    engine.stop = stop_noted  # type: ignore[method-assign]
    stage.shim.close()
    assert wait_until(lambda: stopped == [engine])
