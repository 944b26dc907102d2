"""Commands on a terminal of 40 columns, without colours, and with a reader that takes one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.forked_commands import BROKEN, ForkedCommands
from tests.cli.support import CommandPlace, terminal

COLUMNS = 40
LOOKING = [
    "list",
    "show writer",
    "show far",
    "ps",
    "top",
    "doctor",
    "plan",
    "config check",
    "kv list",
]
CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*[39][0-8]m")


@pytest.fixture(scope="module")
def commands() -> Iterator[ForkedCommands]:
    """Children with a terminal of their own."""
    with ForkedCommands() as forked:
        yield forked


def narrow(commands: ForkedCommands, at: CommandPlace, line: str, **env: str) -> tuple[int, str]:
    """The exit code of a command, and what its terminal is sent."""
    with terminal(COLUMNS) as (name, shown):
        told = {"TERM": "xterm-256color", "COLORTERM": "", **env}
        done = commands.run({**at.env, **told}, Path(at.root), *line.split(), stdout=name)
    return done.code, b"".join(shown).decode()


@pytest.mark.parametrize("line", [line for line in LOOKING if line != "top"])
def test_no_word_is_cut_and_no_line_is_wider_than_the_terminal(
    commands: ForkedCommands, place: CommandPlace, line: str
) -> None:
    """A table is a block for each row there, and sentences are wrapped by the terminal alone."""
    code, shown = narrow(commands, place, line)
    assert code in (0, 2, 4), shown
    assert "Traceback" not in shown
    assert "…" not in shown
    if line in ("list", "show writer", "show far", "doctor"):
        wide = [text for text in CODE.sub("", shown).splitlines() if len(text) > COLUMNS]
        assert [text for text in wide if "/" not in text and ":" not in text] == []


@pytest.mark.parametrize("line", [line for line in LOOKING if line != "top"])
def test_no_color_leaves_every_colour_out(
    commands: ForkedCommands, place: CommandPlace, line: str
) -> None:
    """Whatever the command shows on a terminal."""
    assert not COLOUR.search(narrow(commands, place, line, NO_COLOR="1")[1])


def test_colours_are_there_without_it(commands: ForkedCommands, place: CommandPlace) -> None:
    """So the test before this one sees them."""
    assert COLOUR.search(narrow(commands, place, "doctor")[1])


@pytest.mark.parametrize("line", [*LOOKING, "completion bash"])
def test_a_reader_that_takes_no_more_ends_each_command_without_a_word(
    commands: ForkedCommands, place: CommandPlace, line: str
) -> None:
    """As in `keepwarm list | head -1`."""
    done = commands.run(place.env, Path(place.root), *line.split(), stdout=BROKEN)
    assert (done.code, done.stderr) == (141, "")


@pytest.mark.parametrize("line", [*LOOKING, "completion bash"])
def test_a_terminal_in_latin_1_gets_no_traceback(
    commands: ForkedCommands, place: CommandPlace, line: str
) -> None:
    """Text and JSON hold whatever the encoding holds."""
    place.config.write_text(place.config.read_text().replace("[models.far]", '[models."fär-模"]'))
    env = {**place.env, "PYTHONIOENCODING": "latin-1"}
    done = commands.run(env, Path(place.root), *line.replace("far", "fär-模").split())
    assert done.code in (0, 2, 4)
    assert "Traceback" not in done.stderr
