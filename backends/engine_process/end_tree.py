"""A program that ends an engine's process group, and all with the engine's mark, once its input ends.

It runs as a member of that group (`tree_guard`), with the mark as its argument.
"""

from __future__ import annotations

import os
import signal
import sys

from backends.engine_process.orphans import end_marked


def main() -> None:
    """Wait, and end them; this process is the last."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_marked(sys.argv[1])
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
