"""Errors name the programs that clients are connections of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.keeper.server import programs as programs_module
from shim.keeper.server.programs import Programs
from tests.keeper.server.test_server import Files, serving
from tests.races.support import run


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (
            ["/usr/bin/python3.11", "/srv/agent.py", "--key=secret"],
            "process 7 (python3.11 agent.py)",
        ),
        (["python", "-m", "agents.writer", "secret"], "process 7 (python -m agents.writer)"),
        (["python", "-c", "print('secret')"], "process 7 (python)"),
        (["/opt/agent", "secret"], "process 7 (agent)"),
        (["a\x1b[31m" + "x" * 99], f"process 7 (a?[31m{'x' * 34})"),
        ([], "process 7"),
    ],
)
def test_a_program_is_named_without_what_it_was_given(
    monkeypatch: pytest.MonkeyPatch, words: list[str], name: str
) -> None:
    """Arguments may hold secrets, and control characters would reach a terminal."""
    monkeypatch.setattr(programs_module, "command_line", lambda _pid: words)
    assert Programs().opened(7) == name


def test_a_process_keeps_its_name_while_it_has_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name its connections are known to be of one program, also after it called itself otherwise."""
    said = ["first"]
    monkeypatch.setattr(programs_module, "command_line", lambda _pid: list(said))
    programs = Programs()
    assert programs.opened(7) == "process 7 (first)"
    said[:] = ["second"]
    assert programs.opened(7) == "process 7 (first)"
    programs.closed(7)
    assert programs.opened(7) == "process 7 (first)"
    programs.closed(7)
    programs.closed(7)
    assert programs.opened(7) == "process 7 (second)"


def test_a_denial_by_pins_names_the_process(tiny_models: Files, runtime_dir: Path) -> None:
    """One program's connections wait for each other's pins, and both are named with the process."""

    async def scenario() -> None:
        async with serving(tiny_models, runtime_dir, max_wait=0) as at:
            holder, other = await at.visit(), await at.visit()
            assert "ok" in await holder.ask("lease", model="a", want="pin")
            error = (await other.ask("lease", model="b", deadline_s=0.05))["error"]
            assert f"of process {os.getpid()} (" in error["message"]
            holder.writer.close()
            while at.server.clients.connected > 1:
                await other.ask("status")
            assert "ok" in await other.ask("lease", model="b", want="load")

    run(scenario)
