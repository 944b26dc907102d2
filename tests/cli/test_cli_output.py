"""How tables and the status line look: on wide and narrow terminals, without colours, and in a pipe."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable

import pytest

from shim.cli.console.output import StatusLine, console, counted, print_table

COLUMNS = ("model", "state", "booked", "path")
ROWS = [
    ("writer", "idle 0.42 s", "1.50 GiB", "/models/a-long-name-of-a-file-that-is-quantized.gguf"),
    ("judge[1]", "absent", None, "/models/judge.gguf"),
]
ERASED = re.compile(r"\r(?:\x1b\[1A)?\x1b\[2K")
CODE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """A stream that says that it is a terminal, and keeps what is written."""

    def isatty(self) -> bool:
        """As a terminal's."""
        return True


Shown = Callable[[int, Callable[[], None]], str]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a terminal of some width is sent by a function, on stdout and stderr."""
    for variable in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def show(width: int, write: Callable[[], None]) -> str:
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(width))
            patch.setattr(sys, "stdout", terminal)
            patch.setattr(sys, "stderr", terminal)
            write()
        return terminal.getvalue()

    return show


def table() -> None:
    """A table with a long path and an empty cell."""
    print_table(COLUMNS, ROWS, right=("booked",), title="engines")


def test_a_wide_terminal_shows_a_row_in_a_line(shown: Shown) -> None:
    """The title, the header and the rows; columns of numbers end at the right."""
    title, header, writer, judge = CODE.sub("", shown(120, table)).splitlines()
    assert title == "engines"
    assert header.split() == list(COLUMNS)
    assert writer[: header.index("  path")].endswith("1.50 GiB")
    assert judge.split() == ["judge[1]", "absent", "/models/judge.gguf"]


def test_only_a_long_word_is_broken(shown: Shown) -> None:
    """A path gives way to the terminal; every other cell stays in one line."""
    lines = CODE.sub("", shown(70, table)).splitlines()
    assert all(len(line) <= 70 for line in lines)
    assert lines[2].startswith("writer    idle 0.42 s  1.50 GiB  /models/")
    assert len(lines) == 5


def test_a_narrow_terminal_shows_a_row_as_a_block(shown: Shown) -> None:
    """A line for each cell that holds something, none longer than the terminal."""
    text = CODE.sub("", shown(36, table))
    assert all(len(line) <= 36 for line in text.splitlines())
    first, second = (block.splitlines() for block in text.strip().split("\n\n"))
    assert first[:4] == ["engines", "model   writer", "state   idle 0.42 s", "booked  1.50 GiB"]
    assert second == ["model  judge[1]", "state  absent", "path   /models/judge.gguf"]


def test_colours_are_left_out_where_no_color_is_set(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of messages and of bars."""

    def write() -> None:
        console().print("no mistakes", style="green")
        StatusLine().show("loading", 0.5)

    coloured = re.compile(r"\x1b\[[39][0-8]")
    assert len(coloured.findall(shown(80, write))) >= 2
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(shown(80, write))


def test_a_pipe_stays_plain_whatever_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs read it: FORCE_COLOR and COLUMNS neither colour nor break a line of it."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    table()
    line = StatusLine()
    line.show("nothing", 0.5)
    line.tell("making a model")
    line.last("nothing")
    out, err = capsys.readouterr()
    assert [row.split("  ")[0] for row in out.splitlines()] == [
        "engines",
        "model",
        *("writer", "judge[1]"),
    ]
    assert "\x1b" not in out
    assert err == "making a model\n"


@pytest.mark.parametrize("width", [80, 20])
def test_the_status_line_is_one_line_and_leaves_nothing(shown: Shown, width: int) -> None:
    """It is cut where the terminal ends, with or without a bar, and the cursor is never hidden."""

    def write() -> None:
        line = StatusLine()
        line.show("loading a model of 4.83 GiB [fast] (12 s)", 0.25)
        line.tell("waiting for a slot of the model, 3 in line")
        line.clear()
        line.show("downloading", 1.0)
        line.last("model · cold")

    sent = shown(width, write)
    assert "\x1b[?25l" not in sent
    states = [CODE.sub("", state) for state in ERASED.split(sent)]
    assert all(len(state.rstrip("\n")) <= width for state in states)
    assert "━" in states[0]
    assert "━" not in states[1]
    assert states[-1] == "model · cold\n"


def test_a_terminal_without_escape_codes_gets_whole_lines(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor's shell, say."""
    monkeypatch.setenv("TERM", "dumb")

    def write() -> None:
        line = StatusLine()
        line.show("loading", 0.5)
        line.tell("measuring")
        line.clear()

    assert shown(80, write) == "measuring\n"


def test_one_of_a_thing_is_told_in_the_singular() -> None:
    """`1 evictions` was the last line of many a summary."""
    told = [counted(number, "load") for number in (0, 1, 2, 1000)]
    assert told == ["0 loads", "1 load", "2 loads", "1,000 loads"]
