"""The threads of a keeper's event loop, all started with it.

`Thread.start` waits without bound for a thread that found no memory, so a keeper starts none later. An
inline keeper works on while its program ends: `concurrent.futures` takes no work once the main thread has
returned, but other threads of the program may use the keeper after that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Final, TypeVar

THREADS: Final = 16
"""Work that hangs in a disk or in a driver keeps its thread; so many may hang before other work waits."""
END_LIMIT_S: Final = 5.0
"""The end waits no longer than this for work that has begun."""

_T = TypeVar("_T")


class ReadyThreads(ThreadPoolExecutor):
    """An event loop's executor whose threads run from the start, and do not keep the process from ending.

    Args:
        count: how many threads.
    """

    def __init__(self, count: int = THREADS) -> None:
        super().__init__(max_workers=1)
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ready = [
            threading.Thread(target=self._run, name="keepwarm-work", daemon=True)
            for _ in range(count)
        ]
        for thread in self._ready:
            thread.start()

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Have the work done by the next thread that is free."""
        future: Future[_T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._asked.put(work)
        return future

    def shutdown(self, wait: bool = True, **_options: Any) -> None:  # noqa: FBT001, FBT002
        """End the threads when they have done what was asked; `wait` for them, but not without bound."""
        until = time.monotonic() + END_LIMIT_S
        for _ in self._ready:
            self._asked.put(None)
        for thread in self._ready if wait else ():
            thread.join(max(until - time.monotonic(), 0.0))

    def _run(self) -> None:
        while (work := self._asked.get()) is not None:
            # Whatever this is (no memory for the result), the thread is needed for what comes next.
            with contextlib.suppress(BaseException):
                work()
            del work
