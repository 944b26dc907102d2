"""The holder of a lock: its process, its user, its folder, and the command that ends it."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from backends.machine.processes import user_of

_LONGEST_TEXT = 200


def user_name(uid: int) -> str:
    """A user as people read it: `user ada (1000)`, or the number alone."""
    try:
        return f"user {pwd.getpwuid(uid).pw_name} ({uid})"
    except (KeyError, OverflowError):
        return f"user {uid}"


@dataclass(frozen=True, slots=True)
class Holder:
    """The known facts of a lock's holder; None for unknown ones.

    `inline`: a keeper inside a program, which ends with that program.
    """

    pid: int | None = None
    uid: int | None = None
    folder: str | None = None
    inline: bool = False

    @classmethod
    def this_process(cls, folder: Path | None = None, *, inline: bool = False) -> Self:
        """This process as a holder."""
        return cls(os.getpid(), os.getuid(), str(folder) if folder else None, inline)

    @classmethod
    def of_process(cls, pid: int) -> Self:
        """A holder of which only the process number is known."""
        return cls(pid, user_of(pid))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], uid: int, pid: int | None = None) -> Self:
        """A holder from its own description. `uid`, and `pid` if given, are taken from the kernel instead.

        Raises:
            KeyError, TypeError, ValueError: it says nothing of the kind.
        """
        folder = data["folder"]
        return cls(
            int(data["pid"]) if pid is None else pid,
            uid,
            _printable(folder) if isinstance(folder, str) else None,
            data["inline"] is True,
        )

    def as_dict(self) -> dict[str, Any]:
        """Its own description, JSON-serialisable."""
        return {"pid": self.pid, "uid": self.uid, "folder": self.folder, "inline": self.inline}

    def __str__(self) -> str:
        if self.pid is None and self.uid is None:
            return "another process"
        process = "a process" if self.pid is None else f"process {self.pid}"
        whose = "" if self.uid is None else f" of {user_name(self.uid)}"
        where = f", in {self.folder}" if self.folder else ""
        what = "the inline keeper of " if self.inline else ""
        return f"{what}{process}{whose}{where}"

    def end_command(self) -> str:
        """The command that ends it, quoted for reading; empty when its process is not known."""
        if self.uid == os.getuid() and self.folder and not self.inline:
            return f"`KEEPWARM_RUNTIME_DIR={shlex.quote(self.folder)} keepwarm keeper stop`"
        if self.pid is None:
            return ""
        return f"`kill {self.pid}`" if self.uid == os.getuid() else f"`sudo kill {self.pid}`"


def _printable(text: str) -> str:
    # Another user may have written it.
    short = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in short)
