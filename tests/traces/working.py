"""What a worker of a traced run does, in a process of its own."""

from __future__ import annotations

import os
import signal

from tests.traces.support import MS, load, now, request
from traces import current_run


def work(number: int) -> int:
    """A span with a request in it; returns the process."""
    run = current_run()
    assert run is not None
    with run.span("piece", number=number):
        start = now()
        run.load(load("shared", start - 100 * MS))
        run.request(request(f"{os.getpid()}-{number}", start - 70 * MS, slot=number % 2))
    return os.getpid()


def die(number: int) -> None:
    """As `work`, written, and then killed inside of another span."""
    work(number)
    run = current_run()
    assert run is not None
    with run.span("lost"):
        run.request(request(f"{os.getpid()}-open", now() - 70 * MS))
        run.flush()
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    work(int(os.environ.get("NUMBER", "0")))
