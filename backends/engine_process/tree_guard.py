"""Ends all that an engine has started when its keeper is killed.

The parent-death signal ends the engine's own process. What that has started may live on, with a GPU's
bytes: vLLM's workers, the children of a server or of a Python model. So a small process waits beside such
an engine for the end of a pipe that its keeper alone holds, and then runs `end_tree`.

It is a member of the engine's process group, so that the group's number can be no other's meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from backends.engine_process.child_end import exit_code
from backends.machine.forks import renew_after_fork

_ROOT: Final = str(Path(__file__).parents[2])
_WAITS: Final = 'trap "" HUP INT QUIT TERM USR1 USR2; read -r _; "$@"; kill -KILL 0'
"""A shell takes a tenth of an interpreter's bytes. Signals that ask the group to end do not mean it."""


class TreeGuard:
    """The process that waits.

    Args:
        group: the engine's process group, whose leader is a child of this process.
        mark: a `NAME=value` in the environment of all that the engine starts.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, group: int, mark: str) -> None:
        self._group = group
        shell = shutil.which("sh")
        waits = [shell, "-c", _WAITS, "keepwarm-guard"] if shell is not None else []
        reading, self._writing = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*waits, sys.executable, "-S", "-m", "backends.engine_process.end_tree", mark],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": _ROOT},
                cwd="/",
                process_group=group,
            )
        except OSError:
            os.close(self._writing)
            raise
        finally:
            os.close(reading)
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: close the copy of the pipe, which would outlive the keeper."""
        self._let_go()

    def _let_go(self) -> None:
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def kill_group(self) -> None:
        """End it, and what is left of the group; call it once, after the end of the group's leader."""
        with contextlib.suppress(OSError):
            os.killpg(self._group, signal.SIGKILL)
        self._let_go()

    async def wait(self) -> None:
        """Return when it has ended."""
        await exit_code(self._process)
