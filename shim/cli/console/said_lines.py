r"""Lines that a command prints. Names come from files, engines and callers, and may have anything in them.

A line stays one: its control characters and line breaks are escapes, as `\n`. A text that is content, as an
answer or a log, is printed by `click.echo`: then only a terminal is spared its control characters.
"""

from __future__ import annotations

import click

from backends.foreign.shown_text import one_line


def say(line: object, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr."""
    click.echo(one_line(str(line)), err=err)


def say_all(text: object, *, before: str = "", err: bool = False) -> None:
    """Print a text of several lines, such as a message that quotes a log; `before` stands before the first.

    What follows the first line is indented, so that it passes for no line of keepwarm's own. It is
    quoted text more than a name: its tabs are spaces, and its lines may end as those of Windows do.
    """
    first, *rest = str(text).rstrip("\r\n").replace("\r\n", "\n").split("\n")
    say(before + first, err=err)
    margin = before[: len(before) - len(before.lstrip())]
    for line in rest:
        say(f"{margin}  {line.expandtabs()}", err=err)
