"""A run of tests that is ended by a signal leaves no program behind that its fixtures started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.processes import alive, wait_until

ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import os, signal, sys
from pathlib import Path
import tests.conftest
from backends.machine.children import serving

log = Path(sys.argv[1])
command = ["sh", "-c", "sleep 600 & echo $!; wait"]
with serving(command, dict(os.environ), log, lambda: log.read_text().endswith("\\n")):
    print(log.read_text(), flush=True)
    signal.pause()
"""


def test_what_a_server_of_a_fixture_started_ends_with_a_terminated_run(tmp_path: Path) -> None:
    """A server's own children, too, which no signal of its parent's death reaches."""
    command = [sys.executable, "-c", _RUN, str(tmp_path / "log")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as run:  # type: ignore[call-overload]
        child = int(run.stdout.readline())
        run.terminate()
    assert wait_until(lambda: not alive(child))
