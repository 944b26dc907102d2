"""What the process of a command is given: Ctrl-C, and a limit of memory (`ulimit -v`)."""

from __future__ import annotations

import resource
import signal
from typing import Final

_RAISES: Final = signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""False where the shell has the signal ignored, as it does for commands in the background."""


def ctrl_c(*, raises: bool) -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` in a command that runs, or else end the process at once."""
    if _RAISES:
        signal.signal(signal.SIGINT, signal.default_int_handler if raises else signal.SIG_DFL)


def lack_of_memory(error: BaseException) -> str | None:
    """What to say of an error that a limit of the address space explains; None for other errors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not isinstance(
        error, (ImportError, MemoryError, SystemError)
    ):
        return None
    return f"{limit >> 20} MiB of address space (ulimit -v) are not enough for this command."
