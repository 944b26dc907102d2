"""A cold load: the first request of a model pays for reading its file from the disk.

Run `python examples/traces/cold_load.py`, and open the trace that it names.
"""

import os

from showing import say, show

from shim import Shim
from traces import RunTrace


def story(shim: Shim, run: RunTrace) -> None:
    """One request of a model whose file is in no cache, and a second one."""
    file = os.open(shim.config.models["writer"].path or "", os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    with run.span("first letter"):
        shim.chat("writer", say("Write a letter."), max_tokens=48)
    with run.span("second letter"):
        shim.chat("writer", say("Write another letter."), max_tokens=48)


if __name__ == "__main__":
    show(story, "cold load", ["writer"])
