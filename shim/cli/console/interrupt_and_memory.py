"""What the process of a command is given: Ctrl-C, and a limit of memory (`ulimit -v`)."""

from __future__ import annotations

import errno
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_RAISES: Final = signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""False where the shell has the signal ignored, as it does for commands in the background."""


def end_at_ctrl_c() -> None:
    """Let Ctrl-C end the process at once: there is nothing to give back outside a command."""
    if _RAISES:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def ctrl_c_raises() -> Iterator[None]:
    """Let Ctrl-C raise `KeyboardInterrupt`, and put back what it did before.

    Nothing is changed on a thread, where Python allows no change, or in a program that has a handler.
    """
    before = signal.getsignal(signal.SIGINT)
    changes = before is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if changes:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if changes:
            signal.signal(signal.SIGINT, before)


def lack_of_memory(error: BaseException) -> str | None:
    """What to say of an error that a limit of the address space explains; None for other errors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    lacks = isinstance(error, (ImportError, MemoryError, SystemError)) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
    if limit == resource.RLIM_INFINITY or not lacks:
        return None
    return f"{limit >> 20} MiB of address space (ulimit -v) are not enough for this command."
