"""Evaluators under the floor that some programs use all the same, as the keeper books and shows them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shim.cli.commands.doctor import place_checks
from shim.cli.commands.ps import command as ps
from shim.config import Config
from shim.wire.fingerprint import reference
from tests.keeper.server.test_server import OpenServer, Visitor, serving
from tests.races.support import run


async def judge_of(at: OpenServer, entry: dict[str, Any]) -> tuple[Visitor, str]:
    """A client of a further project that has handed over its judge, and what it calls it."""
    visitor = await at.visit()
    file = "/rag/keepwarm.toml"
    said = await visitor.ask("take_in", entries={"judge": entry}, read_at=1.0, file=file)
    assert said["ok"] == {}
    return visitor, reference(
        "judge", Config.from_mapping({"models": {"judge": entry}}).models["judge"]
    )


async def overridden(visitor: Visitor) -> int:
    """By how many programs the judge is, as the keeper says."""
    return int((await visitor.ask("status"))["ok"]["unavailable"]["judge@rag"]["overridden_by"])


@pytest.mark.parametrize("use", ["plan", "lease"])
def test_an_override_of_a_further_project_holds_and_ends_with_its_program(
    tiny_models: dict[str, Path], runtime_dir: Path, use: str
) -> None:
    """Its declaration was refused, because the keeper has another name for the judge."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir) as at:
            entry = {"path": str(tiny_models["producer"]), "context": 512, "role": "evaluator"}
            visitor, judge = await judge_of(at, entry)
            named: dict[str, Any] = (
                {"models": [judge], "plan": "p"} if use == "plan" else {"model": judge}
            )
            for op, fields in (("lease", {"model": judge}), (use, named)):
                refused = await visitor.ask(op, **fields)
                assert refused["error"]["error"] == "RoleViolation"
            watcher = await at.visit()
            assert await overridden(watcher) == 0
            said = await visitor.ask(use, **named, overridden=["judge"] if use == "plan" else True)
            assert "ok" in said, said
            assert await overridden(watcher) == 1
            visitor.writer.transport.abort()
            for _ in range(5):
                await asyncio.sleep(0)
            assert await overridden(watcher) == 0

    run(scenario)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({}, "judge cannot be run: too coarse"),
        ({"overridden_by": 0}, "judge cannot be run: too coarse"),
        (
            {"overridden_by": 1},
            "judge is overridden by 1 program, and cannot be run by others: too coarse",
        ),
        (
            {"overridden_by": 2},
            "judge is overridden by 2 programs, and cannot be run by others: too coarse",
        ),
    ],
)
def test_ps_and_doctor_say_by_how_many_programs_an_unfit_evaluator_is_overridden(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, int],
    said: str,
) -> None:
    """They said that the model cannot be run while one ran it; an older keeper goes on to be shown."""
    unfit = {"judge": {"message": "too coarse", "hint": "", **told}}
    ps._print_unavailable(unfit)
    assert capsys.readouterr().out == f"\n{said}\n"
    keeper = {"pid": 1, "uptime_s": 1.0, "background": [], "faults": []}
    status = {"keeper": keeper, "unavailable": unfit}
    monkeypatch.setattr(place_checks, "ask_running", lambda *_of, **_more: status)
    assert [one.text for one in place_checks.check_keeper(Config())][1:] == [said]
