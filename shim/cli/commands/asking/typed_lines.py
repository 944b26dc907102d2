"""What a person types at `keepwarm run`: lines that can be edited, and texts of several lines."""

from __future__ import annotations

import importlib
import os
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Final

import click

PROMPT: Final = ">>> "
CONTINUED: Final = "... "
QUOTES: Final = '"""'


def is_typed() -> bool:
    """Whether a person types at a terminal, so that questions are asked one by one."""
    return sys.stdin.isatty()


def is_piped() -> bool:
    """Whether stdin is a pipe or a file, whose text belongs to the prompt."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return not sys.stdin.isatty()
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def edit_lines(words: Sequence[str]) -> None:
    """Let lines be edited and earlier ones called back; Tab completes `words` at a line's beginning.

    The lines typed are kept in memory only.
    """
    try:
        readline = importlib.import_module("readline")
    except ImportError:
        return

    def complete(begun: str, number: int) -> str | None:
        first = readline.get_begidx() == 0
        found = [word for word in words if first and word.startswith(begun)]
        return f"{found[number]} " if number < len(found) else None

    readline.set_completer_delims(" \t")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def read_line(prompt: str) -> str:
    """A line of the terminal.

    Raises:
        EOFError: Ctrl-D on an empty line, or the terminal is gone.
    """
    if sys.stdout.isatty():
        return input(prompt)
    # The answers go elsewhere, and the prompt is none.
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def read_text(read: Callable[[str], str] = read_line) -> str:
    '''A line, or all lines between """ and """.

    Raises:
        EOFError: there is none.
    '''
    text = read(PROMPT)
    if not text.lstrip().startswith(QUOTES):
        return text
    text = text.lstrip().removeprefix(QUOTES)
    while not text.rstrip().endswith(QUOTES):
        text += f"\n{read(CONTINUED)}"
    return text.rstrip().removesuffix(QUOTES)
