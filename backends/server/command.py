"""The command of a server: what it may leave open, and what is put there."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.kinds import Verb

PLACES: Final = ("port", "socket", "key_file")
"""What keepwarm chooses at each start, and a command may name as `{port}` and so on."""
NAMES: Final = (*PLACES, "model", "name")
KEY: Final = "key"
"""For `env` alone: every user of a machine can read its command lines."""
_OPEN: Final = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server as it is configured.

    Attributes:
        command: the program and its arguments, with names in braces for what is not known yet.
        served: the model's name in its requests, where it serves several or checks it.
        can: what it does of OpenAI's API.
        ready: a path that answers 2xx once it is ready; None: it is ready when it listens.
        files: the files that it reads, where they are known.
        cwd: its working folder.
        env: further environment variables; these may name the key.
        stop_signal: how it is asked to end; None: it is killed, which gives its bytes back soonest.
    """

    command: tuple[str, ...]
    served: str
    can: frozenset[Verb] = frozenset()
    ready: str | None = None
    files: tuple[Path, ...] = ()
    cwd: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals | None = None

    @property
    def by_port(self) -> bool:
        """Whether it listens on a port, and not on a Unix socket."""
        return "port" in named((*self.command, *self.env.values()))


def named(texts: Sequence[str]) -> set[str]:
    """The names in braces in some texts. Braces of JSON and of shells hold no such name alone."""
    return {name for text in texts for name in _OPEN.findall(text)}


def filled(text: str, values: Mapping[str, str]) -> str:
    """A text with every name in braces replaced."""
    return _OPEN.sub(lambda found: values.get(found[1], found[0]), text)


def mistakes(
    command: Sequence[str], env: Mapping[str, str], *, has_files: bool
) -> list[tuple[str, str, str]]:
    """What is wrong with the names in braces: the key of the configuration, what, and what is allowed."""
    in_command, in_env = named(command), named(tuple(env.values()))
    found = []
    for key, names, known in (("command", in_command, NAMES), ("env", in_env, (*NAMES, KEY))):
        unknown = sorted(names - set(known))
        found += [(key, f"{{{name}}}, {_why(name)}", _listed(known)) for name in unknown]
    both = in_command | in_env
    if len(both & {"port", "socket"}) != 1:
        told = "both {port} and {socket}" if {"port", "socket"} <= both else "no {port} or {socket}"
        found.append(("command", f"{told}: where it is to listen", "one of the two"))
    if "model" in both and not has_files:
        found.append(("command", "{model} without `files`", "files = the model's file, or {name}"))
    return found


def _why(name: str) -> str:
    if name == KEY:
        return "which other users of this machine could read: give it in `env`, or {key_file} here"
    close = difflib.get_close_matches(name, NAMES, n=1)
    return f"which is not known (did you mean {{{close[0]}}}?)" if close else "which is not known"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
