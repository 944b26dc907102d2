"""Other processes, seen from a test: whether they are there, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 60.0
"""The bound of every wait for another process. It is there to fail, never to be reached."""


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie.

    Where its first thread is one and others are not, it still holds its files and locks.
    """
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z" or len(tasks) > 1


def wait_until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> bool:
    """Poll until a condition holds; returns whether it did within the limit."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
