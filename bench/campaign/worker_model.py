"""The campaign's Python model. It runs in a worker and needs nothing but the standard library.

Mischief lies in a file: the first call, or the load, that finds the file takes it and does what it says.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def taken(mischief: Path) -> str:
    """What the file says, for the first process that renames it; nothing for all others.

    The file of that process stays: the campaign removes it, and so knows which process hangs, say.
    """
    mine = mischief.with_name(f"{mischief.name}.{os.getpid()}")
    try:
        said = mischief.read_text()
        mischief.rename(mine)
    except OSError:
        return ""
    return said


class Adder:
    """Adds numbers, and does what its mischief says."""

    def __init__(self, mischief: str) -> None:
        self._mischief = Path(mischief)
        _do(taken(self._mischief.with_name("worker-load")))

    def __call__(self, numbers: list[int], streamed: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The sum, or each of the sums as they grow."""
        odd = _do(taken(self._mischief))
        if odd is not None:
            return odd
        return self._sums(numbers) if streamed else sum(numbers)

    def _sums(self, numbers: list[int]) -> Iterator[int]:
        total = 0
        for number in numbers:
            total += number
            yield total


def _do(what: str) -> object:
    """Carry the mischief out; what it returns, if anything, is the call's result."""
    if what == "raise":
        raise ValueError("as it was told")
    if what == "exit":
        os._exit(7)
    if what == "crash":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(600)
    if what == "object":
        return object()
    if what == "print":
        print("x" * 100_000)
        sys.stdout.buffer.write(b"\xff\x00 no text\n")
    if what == "leave":
        threading.Thread(target=threading.Event().wait).start()
        if os.fork() == 0:
            time.sleep(600)
    return None
