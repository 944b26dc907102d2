"""The end of a child process, awaited without a thread.

Before Python 3.12 asyncio starts a thread for each child, and `Thread.start` waits without bound for a
thread that found no memory: the event loop stood still for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import Any, Final

LOOK_EVERY_S: Final = 0.05
"""How often a child is looked at where the kernel cannot tell its end."""


async def exit_code(child: subprocess.Popen[Any]) -> int:
    """The exit code of a child once it has ended (negative: the signal that ended it).

    Cancelling harms nothing. Only one task may wait for a child.
    """
    # Without it (an old kernel, no descriptor left) the child is looked at again and again.
    with contextlib.suppress(OSError):
        await _told(child.pid)
    while (code := child.poll()) is None:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)
    return code


async def _told(pid: int) -> None:
    """Return when the kernel says that the child has ended.

    Raises:
        OSError: it cannot tell.
    """
    loop = asyncio.get_running_loop()
    handle = os.pidfd_open(pid)
    try:
        ended = asyncio.Event()
        loop.add_reader(handle, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(handle)
    finally:
        os.close(handle)
