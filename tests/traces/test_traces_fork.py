"""What a run leaves behind for processes that are forked while it is there, and when it is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from traces.names import REQUEST_ID
from traces.reading.stored_events import TraceFile
from traces.recording.writer import GATHER_SECONDS

RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"

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


KILLED = """
import os, signal, sys, time
from tests.traces.support import MS, now, request
from traces import RunTrace

run = RunTrace("killed", sys.argv[1]).__enter__()
run.request(request("before", now() - 70 * MS))
while b"before" not in run.trace_path.read_bytes():
    time.sleep(0.01)
run.request(request("after", now() - 70 * MS))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_only_what_it_gathered_in_the_last_tenth_of_a_second(
    tmp_path: Path,
) -> None:
    """What was gathered before is in the file without any call of the program; the bound is in the docs."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    file = TraceFile(tmp_path / "killed.trace.json")
    ids = [event.get("args", {}).get(REQUEST_ID) for event in file.events()]
    assert file.cut
    assert "before" in ids
    assert GATHER_SECONDS == 0.1
    assert "last tenth of a second" in RELIABILITY.read_text("utf-8")
