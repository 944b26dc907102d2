"""A program that ends an engine's process group, and all with the engine's mark, once its input ends.

It runs as a member of that group (`tree_guard`), with the mark as its argument. Shared memory that only
they had goes with them: `multiprocessing` removes it when they end by themselves, and never when they are
killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Final

from backends.engine_process.orphans import end_marked, marked, send_kill
from backends.machine.files.shared_memory import remove_segments, segments_of
from backends.machine.processes import group_members

_LIMIT_S: Final = 5.0
_PAUSE_S: Final = 0.01


def main() -> None:
    """Wait, and end them; this process is the last."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    mark, group = sys.argv[1], os.getpgrp()
    segments = segments_of({*marked(mark), *group_members(group)})
    end_marked(mark)
    until_s = time.monotonic() + _LIMIT_S
    while segments and time.monotonic() < until_s:
        for pid in group_members(group):
            if pid != os.getpid():
                send_kill(pid, lambda pid: os.getpgid(pid) == group)
        # One that a process has mapped which is not dead yet stays, this time.
        segments -= set(remove_segments(segments))
        time.sleep(_PAUSE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
