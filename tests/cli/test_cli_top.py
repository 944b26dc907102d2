"""`keepwarm top`: the picture on terminals of every width, the lines of a pipe, and the key that leaves."""

from __future__ import annotations

import os
import pty
import re
import select
import termios
from typing import Any

import pytest
from rich.console import Console

from shim.cli.commands.ps import top as top_module
from shim.cli.commands.ps.command import NO_KEEPER
from shim.cli.commands.ps.top import CpuShares, screen
from tests.cli.support import LIMIT_S, CommandPlace

CODE = re.compile(r"\x1b\[[0-9;]*m")


def engine(name: str, state: str, **more: Any) -> dict[str, Any]:
    """An engine's row of the status."""
    row = {"id": f"{name}-1", "models": [name], "state": state, "leases": [], "slots": 2}
    figures = {"bytes": {"host": 5 << 30}, "measured": {"host": 4 << 30}, "uses": 7, "waiting": 0}
    other = {"pid": None, "pinned": False, "load_fraction": None, "idle_s": 3.0, "last_error": None}
    return {**row, **figures, **other, **more}


def status(**more: Any) -> dict[str, Any]:
    """A keeper with three engines and seven requests that wait."""
    waits = {"model": "a-very-long-name-of-a-model", "waited_s": 2.0, "waits_for": "its load"}
    device = {"device": "cuda:0", "limit_bytes": 20 << 30, "reserved_bytes": 15 << 30}
    engines = [
        engine("absent", "absent", bytes={}, measured=None),
        engine("judge", "idle", pinned=True),
        engine("a-very-long-name-of-a-model", "loading", load_fraction=0.5, waiting=7),
        engine("wri\x1b[2Jter", "leased", leases=[{}]),
    ]
    keeper = {"pid": 4711, "uptime_s": 100.0}
    base = {"running": True, "keeper": keeper, "devices": [device], "engines": engines}
    return {**base, "queue": [waits] * 7, **more}


def drawn(width: int, said: dict[str, Any]) -> str:
    """What a terminal of so many columns is sent."""
    target = Console(width=width, force_terminal=True, color_system="standard")
    with target.capture() as captured:
        target.print(screen(said, width, CpuShares()))
    return captured.get()


@pytest.mark.parametrize("width", [30, 40, 70, 120])
def test_no_line_is_longer_than_the_terminal(width: int) -> None:
    """Engines that work come first; a narrow terminal has fewer columns."""
    lines = CODE.sub("", drawn(width, status())).splitlines()
    assert max(map(len, lines)) <= width
    names = [line.split()[0] for line in lines if re.search(r"leased|loading|idle|absent", line)]
    assert names[0].startswith("wri")
    assert names[-1].startswith("absent")
    assert any("and 2 more" in line for line in lines)
    assert ("uses" in " ".join(lines)) == (width >= 90)


def test_names_with_codes_of_a_terminal_are_shown_as_escapes() -> None:
    """A model's name is text of a file."""
    assert "\x1b[2J" not in drawn(120, status())
    assert r"wri\x1b[2Jter" in drawn(120, status())


def test_no_color_leaves_the_colours_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the states and the bars."""
    coloured = re.compile(r"\x1b\[[39][0-8]")
    assert coloured.search(drawn(120, status()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(drawn(120, status()))


def test_without_a_keeper_and_in_a_pipe_it_prints_once(place: CommandPlace) -> None:
    """And starts none; programs get what `ps --json` prints."""
    assert "No keeper runs" in drawn(40, dict(NO_KEEPER))
    assert place.run("top").stdout.startswith("No keeper runs, so no model is resident.\n")
    assert place.json("top") == dict(NO_KEEPER)


def test_the_lines_of_a_pipe_are_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each engine, with what it takes."""
    monkeypatch.setattr(top_module, "read_status", status)
    top_module.print_once(status(), CpuShares())
    lines = capsys.readouterr().out.splitlines()
    assert "cuda:0: 15.0 GiB of 20.0 GiB" in lines
    (judge,) = (line for line in lines if line.startswith("judge"))
    assert "idle 3.00 s (pinned)" in judge
    assert "5.00 GiB" in judge


def test_the_share_of_a_core_is_what_was_used_since_the_last_look() -> None:
    """Of a process that is here; nothing is known at first."""
    work = CpuShares()
    assert work.of(None) == work.of(os.getpid()) == ""
    assert re.fullmatch(r"\d+%", work.of(os.getpid()))


def test_q_leaves_and_the_terminal_is_as_before(place: CommandPlace) -> None:
    """At a terminal; the picture is there before the key is pressed."""
    ours, theirs = pty.openpty()
    started = place.start("top", stdin=theirs, stdout=theirs, stderr=theirs)
    shown = b""
    while b"No keeper runs" not in shown:
        assert select.select([ours], [], [], LIMIT_S)[0]
        shown += os.read(ours, 4096)
    os.write(ours, b"q")
    assert started.wait(LIMIT_S) == 0

    assert termios.tcgetattr(theirs)[3] & termios.ECHO
    os.close(ours)
    os.close(theirs)
