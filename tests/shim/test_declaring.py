"""DeclaredUses from the caller's side: declared, used up by requests, withdrawn at their end."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import shim
from harness import Pipeline, Stage
from shim import InvalidRequest, UnknownModel
from tests.processes import wait_until
from tests.shim.conftest import Stage as Scripted


def left(stage: Scripted) -> list[list[str]]:
    """What is left of every plan, as the first names of the models."""
    status = stage.shim.status()
    named = {row["id"]: row["models"][0] for row in status["engines"]}
    return [[named[engine] for engine in steps] for steps in status["plans"].values()]


def test_requests_inside_use_the_plan_up_and_the_end_withdraws_it(stage: Scripted) -> None:
    """They come over other connections than the plan; what is not planned is an aside."""
    with stage.shim.plan(["a", "b", "a"]):
        assert left(stage) == [["a", "b", "a"]]
        stage.shim.chat("a", "Hi.")
        assert left(stage) == [["b", "a"]]
        stage.shim.chat("b", "Hi.")
        assert left(stage) == [["a"]]
    assert left(stage) == []


def test_the_next_model_is_there_before_it_is_asked_for(stage: Scripted) -> None:
    """Nothing is cold but the first."""
    with stage.shim.plan(["a", "b"]):
        stage.shim.chat("a", "Hi.")
        assert wait_until(lambda: stage.shim.status()["engines"][-1]["state"] == "idle")
        assert not stage.shim.chat("b", "Hi.").residency.cold


def test_a_plan_is_shown_with_the_process_that_declared_it(stage: Scripted) -> None:
    """By model, so that people see which client uses which model next."""
    with stage.shim.plan(["b", "a"]) as plan:
        (row,) = stage.shim.status()["declared"]
        assert (row["plan"], row["pid"], row["left"]) == (plan.name, os.getpid(), 2)
        assert [use["model"] for use in row["next"]] == ["b", "a"]
    assert stage.shim.status()["declared"] == []


def test_two_declarations_at_once_are_kept_apart(stage: Scripted) -> None:
    """Each thread's requests are steps of the plan that it entered."""

    def work(models: list[str]) -> list[list[str]]:
        with stage.shim.plan(models):
            stage.shim.chat(models[0], "Hi.")
            return left(stage)

    with stage.shim.plan(["b", "b", "b"]), ThreadPoolExecutor(1) as pool:
        seen = pool.submit(work, ["a", "a"]).result()
        assert sorted(seen) == [["a"], ["b", "b", "b"]]
        stage.shim.chat("b", "Hi.")
        assert left(stage) == [["b", "b"]]


def test_a_plan_ends_with_an_error_inside(stage: Scripted) -> None:
    """As with any other end."""
    with pytest.raises(RuntimeError), stage.shim.plan(["a"]):
        raise RuntimeError
    assert left(stage) == []


def test_asynchronous_plans(stage: Scripted) -> None:
    """`async with` holds a connection of the loop; `adeclare` replaces what is left."""

    async def main() -> None:
        async with stage.shim.plan(["a", "b"]) as plan:
            await stage.shim.achat("a", "Hi.")
            assert await asyncio.to_thread(left, stage) == [["b"]]
            await plan.adeclare(["b", "a"])
            assert await asyncio.to_thread(left, stage) == [["b", "a"]]
        await stage.shim.adeclare(["a"])
        await stage.shim.adeclare([])

    asyncio.run(main())
    assert wait_until(lambda: left(stage) == [])


def test_declared_without_an_end(stage: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of the module do the same with the default shim."""
    monkeypatch.setattr("shim.defaults._DEFAULT._shim", stage.shim)
    shim.declare(["a", "b"])
    shim.chat("a", "Hi.")
    assert left(stage) == [["b"]]
    shim.declare(["b", "b"])
    assert left(stage) == [["b", "b"]]
    shim.declare([])
    assert left(stage) == []
    with shim.plan(["a"]):
        assert left(stage) == [["a"]]


def test_what_cannot_be_planned_is_refused(stage: Scripted) -> None:
    """A name that is not configured, or one text; remote models take no bytes and are left out."""
    with pytest.raises(UnknownModel):
        stage.shim.plan(["a", "unknown"])
    with pytest.raises(InvalidRequest):
        stage.shim.plan("a")
    with stage.shim.plan(["remote"]):
        assert left(stage) == []


def test_a_pipeline_declares_its_stages(stage: Scripted, tmp_path: Path) -> None:
    """Those that are left of this input, then those of the next ones."""
    seen: list[list[list[str]]] = []

    def look(context: object) -> None:
        seen.append(left(stage))

    Pipeline([Stage("one", "a", look), Stage("two", "b", look)], stage.shim).run([1, 2])
    assert seen == [[["a", "b", "a", "b"]], [["b", "a", "b"]], [["a", "b"]], [["b"]]]
    assert left(stage) == []
