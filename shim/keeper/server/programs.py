"""The programs that clients are connections of, by names that errors quote."""

from __future__ import annotations

from itertools import takewhile
from pathlib import PurePath
from typing import Final

from backends.machine.processes import command_line

_WORDS: Final = 3
_LETTERS: Final = 40
_TAKES_ONE: Final = frozenset({"-m"})
"""Options after which the next word says what runs."""


class Programs:
    """One name for each process that has a connection, from its first connection to its last.

    The name tells programs apart, so that it stays while a process has connections, whatever the process
    does to its command line.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[str, int]] = {}

    def opened(self, pid: int) -> str:
        """A process has one connection more; returns its name."""
        name, count = self._open.get(pid) or (_name(pid), 0)
        self._open[pid] = name, count + 1
        return name

    def closed(self, pid: int) -> None:
        """A process has one connection less."""
        name, count = self._open.pop(pid)
        if count > 1:
            self._open[pid] = name, count - 1


def _name(pid: int) -> str:
    """The process with its program, and the script or module of an interpreter; never what it was given."""
    words = command_line(pid)[:_WORDS]
    said = [PurePath(words[0]).name] if words else []
    if len(words) > 1 and words[1] in _TAKES_ONE:
        said += words[1:]
    elif said and said[0].startswith("python"):
        said += [PurePath(word).name for word in takewhile(lambda w: w[:1] != "-", words[1:2])]
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(said))[:_LETTERS]
    return f"process {pid} ({shown})" if shown else f"process {pid}"
