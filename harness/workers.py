"""Threads for functions that run side by side; none of them is left when their `with` ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, Self


class Workers:
    """Runs functions side by side, each on a thread in a copy of the context that started it.

    Leaving the `with` waits for all functions, also for those that fail. An interrupt ends this wait;
    the threads that still run do not keep the program from ending.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._running = 0
        self._ended: SimpleQueue[tuple[str, Any, BaseException | None]] = SimpleQueue()

    def next_done(self, starting: Mapping[str, Callable[[], Any]]) -> tuple[str, Any]:
        """Start functions, and wait for the next one that ends: its name and its result.

        A single function beside which nothing runs is run by the caller's own thread.

        Raises:
            BaseException: what the function raised.
        """
        if not self._running and len(starting) == 1:
            ((name, work),) = starting.items()
            return name, work()
        for name, work in starting.items():
            self._start(name, work)
        name, result, error = self._ended.get()
        self._running -= 1
        if error is not None:
            raise error
        return name, result

    def _start(self, name: str, work: Callable[[], Any]) -> None:
        context = copy_context()
        thread = threading.Thread(
            target=self._perform, args=(name, work, context), name=name, daemon=True
        )
        # Listed before it starts: an interrupt in between leaves no thread behind.
        self._threads.append(thread)
        thread.start()
        self._running += 1

    def _perform(self, name: str, work: Callable[[], Any], context: Context) -> None:
        # Everything goes to the caller, an interrupt or an exit as well: a thread would lose it.
        try:
            result = context.run(work)
        except BaseException as error:
            self._ended.put((name, None, error))
        else:
            self._ended.put((name, result, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
