"""The end of a process, also of a worker of `multiprocessing`, which ends without the interpreter's own."""

from __future__ import annotations

import atexit
import importlib
import sys
from collections.abc import Callable


def at_process_end(action: Callable[[], None]) -> None:
    """Call `action` when this process ends by itself; it may be called twice."""
    atexit.register(action)
    if "multiprocessing.process" in sys.modules:
        util = importlib.import_module("multiprocessing.util")
        util.Finalize(None, action, exitpriority=0)
