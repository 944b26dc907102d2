"""How many files this process may open: as many as can be; an error says so where it may open no more."""

from __future__ import annotations

import contextlib
import errno
import resource
from typing import Final

from budget.errors import QueueFull

_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)


def raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def no_more_files(error: BaseException) -> QueueFull | None:
    """The error of a connection for which no descriptor was left; None for any other failure."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NONE_LEFT:
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return QueueFull(
                f"No further connection can be opened by this process: {cause.strerror}; it may have "
                f"{most} open files.",
                hint="Use fewer threads, tasks or streams at once, or raise the limit on open files "
                "(`ulimit -n`).",
            )
        cause = cause.__cause__ or cause.__context__
    return None
