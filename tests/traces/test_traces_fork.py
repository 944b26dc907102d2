"""What a run leaves behind for processes that are forked while it is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FORK = """
import os, select, signal, sys
from traces import RunTrace

with RunTrace("forked", sys.argv[1]):
    import concurrent.futures.thread  # as asyncio does when it first needs a thread
    alive, says = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(says, b"alive")
        os._exit(0)
    if not select.select([alive], [], [], 20)[0]:
        os.kill(child, signal.SIGKILL)
        sys.exit("the child hangs in fork()")
    os.waitpid(child, 0)
"""


def test_a_child_forked_from_a_traced_run_that_used_threads_does_not_hang(tmp_path: Path) -> None:
    """The tracer's own hook starts a thread pool in the child, whose lock must be new by then."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
