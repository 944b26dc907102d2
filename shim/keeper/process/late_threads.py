"""Threads of an inline keeper, which works on while its program ends.

`concurrent.futures` takes no work once the main thread has returned. Other threads of the program may use
the keeper after that, and the keeper is closed later still.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")


class LateThreads(ThreadPoolExecutor):
    """An event loop's executor with a thread for each piece of work."""

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """Begin work in a thread; where no thread can be started any more, do it here."""
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

        try:
            threading.Thread(target=work, name="keepwarm-work", daemon=True).start()
        except RuntimeError:
            work()
        return future
