"""Real commands in children of one process that has imported the command line once.

A child has the descriptors, variables and working folder of a new process, without the third of a second
that importing takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BROKEN: Final = "broken"
"""In place of a file for stdout: a pipe whose reader has ended."""
CLOSED: Final = None

_SERVER: Final = """
import io, json, os, sys
import shim.cli.__main__ as program
from shim.cli.lazy import command_at
from shim.cli.root import COMMANDS
for place, _ in COMMANDS.values():
    command_at(place)
def open_streams(files, encoding):
    for number, file in enumerate(files):
        if file is None:
            os.close(number)
            continue
        if file == "broken":
            reader, opened = os.pipe()
            os.close(reader)
        else:
            reads = number == 0 and file != files[1]
            flags = os.O_RDONLY if reads else os.O_WRONLY | os.O_APPEND | os.O_CREAT
            opened = os.open(file, flags)
        os.dup2(opened, number)
        os.close(opened)
    how = {"encoding": encoding, "closefd": False}
    sys.stdin, sys.stdout, sys.stderr = (
        None if file is None else io.open(number, "w" if number else "r", **how)
        for number, file in enumerate(files)
    )
asked, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in asked:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.chdir(order["cwd"])
            os.environ.clear()
            os.environ.update(order["env"])
            open_streams(order["files"], order["env"].get("PYTHONIOENCODING", "utf-8"))
            sys.argv = ["keepwarm", *order["args"]]
            code = program.run()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


@dataclass
class Ended:
    """A command that ended: its exit code, and what it wrote where stdout and stderr were files of ours."""

    code: int
    stdout: bytes
    stderr: str


class ForkedCommands:
    """Runs commands, one after another. Its `with` block holds the process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
            text=True,
        )

    def run(
        self,
        env: Mapping[str, str],
        folder: Path,
        *args: str,
        stdin: str | None = "/dev/null",
        stdout: str | None = "",
        stderr: str | None = "",
    ) -> Ended:
        """A whole command in a folder. A stream is a path, `CLOSED`, or left out to be read here."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out, err = folder / "stdout", folder / "stderr"
        for file in (out, err):
            file.write_bytes(b"")
        files = [stdin, str(out) if stdout == "" else stdout, str(err) if stderr == "" else stderr]
        order = {"args": args, "env": dict(env), "cwd": str(folder), "files": files}
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Ended(code, out.read_bytes(), err.read_text(errors="replace"))

    def __enter__(self) -> ForkedCommands:
        return self

    def __exit__(self, *_failure: Any) -> None:
        self._process.communicate()
