"""Other users and other processes of this machine. Only root can become another user."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

ROOT = Path(__file__).resolve().parents[1]
OTHER_UID = 54321
"""No user of that number is in the password database."""

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

Say = Callable[[object], None]


@dataclass
class Other:
    """A forked process of another user."""

    pid: int
    _said: TextIO

    def hear(self) -> str:
        """The next line it said; empty when it ended instead."""
        return self._said.readline().rstrip("\n")


@contextlib.contextmanager
def other_user(work: Callable[[Say], object]) -> Iterator[Other]:
    """Run something as another user; what it returns is kept alive until the block ends.

    The process is forked: another user may not be able to read the interpreter's folder.
    """
    heard, writer = os.pipe()
    waiting, going = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(going)
            os.setgroups([])
            os.setgid(OTHER_UID)
            os.setuid(OTHER_UID)
            kept = work(lambda text: _write(writer, text))
            os.read(waiting, 1)
            del kept
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    os.close(waiting)
    with os.fdopen(heard) as said:
        try:
            yield Other(pid, said)
        finally:
            os.close(going)
            os.waitpid(pid, 0)


def _write(fd: int, text: object) -> None:
    os.write(fd, f"{text}\n".encode())


def said_by_other_user(work: Callable[[Say], object]) -> str:
    """The first line that another user's process says."""
    with other_user(work) as other:
        return other.hear()


def start_python(code: str, *args: str) -> subprocess.Popen[str]:
    """A Python process of this user that runs some lines."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
    )
