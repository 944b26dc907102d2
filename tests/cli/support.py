"""A private place for real commands: `keepwarm` in this process, or as one of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from shim.cli import main
from tests.places import Place, opened

LIMIT_S = 120.0
ENDLESS = ("--max-tokens", "1000000000")
KEEPWARM = [sys.executable, "-m", "shim.cli"]
_ROOT = Path(__file__).resolve().parents[2]
_HOLD = """
import sys
from shim import Shim
with Shim(inline=False) as shim, shim.http(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@dataclass
class CommandPlace(Place):
    """A place of real commands; footprints are measured once for all that share a `cache`."""

    cache: Path

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command here."""
        return {**super().env, "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(_ROOT)}

    def configure(self, models: Mapping[str, Mapping[str, Any]], **sections: Any) -> None:
        """Write the configuration file; nothing of the host is kept free, unless it is said."""
        budget = {"reserve": "0B", **sections.pop("budget", {})}
        super().configure(models, budget=budget, **sections)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """A command in a process of its own that goes on."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.root}
        return subprocess.Popen([*KEEPWARM, *args], env=self.env, **{**given, **options})

    @contextlib.contextmanager
    def held(self, model: str) -> Iterator[subprocess.Popen[bytes]]:
        """A program that holds a lease on a model meanwhile, however quick its engine is."""
        argv = [sys.executable, "-c", _HOLD, model]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(argv, env=self.env, cwd=self.root, **pipes) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"held\n"
            yield program

    def run(self, *args: str, stdin: str = "") -> Result:
        """A whole command, in this process: imported once for all tests. The keeper is its own."""
        return CliRunner().invoke(main, list(args), input=stdin, env=self.env)

    def process(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A whole command in a process of its own, as people run it."""
        return subprocess.run(
            [*KEEPWARM, *args],
            input=stdin,
            env=self.env,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    def json(self, *args: str, code: int = 0) -> Any:
        """What a command prints with `--json`; its exit code is checked."""
        done = self.run(*args, "--json")
        assert done.exit_code == code, done.stderr
        return json.loads(done.stdout)

    def engine(self, model: str) -> dict[str, Any]:
        """The row of a model's engine in `ps --json`."""
        return next(row for row in self.json("ps")["engines"] if model in row["models"])

    def close(self) -> None:
        """Stop the keeper, and remove the folders."""
        self.run("keeper", "stop")
        super().close()


@contextlib.contextmanager
def terminal(columns: int = 0) -> Iterator[tuple[str, list[bytes]]]:
    """A terminal's name, and what it is sent: complete when the block ends. 0 columns: not told."""
    ours, theirs = pty.openpty()
    if columns:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 4096):
                shown.append(piece)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        yield os.ttyname(theirs), shown
    finally:
        os.close(theirs)
        reading.join()
        os.close(ours)


def new_place(cache: Path) -> AbstractContextManager[CommandPlace]:
    """A place that ends with the test."""
    return opened(lambda root: CommandPlace(root, cache))
