"""The one inline keeper of a session: the first thread starts it, and the others wait for it."""

from __future__ import annotations

# Loaded early for the keeper's threads: once the main thread has returned, it refuses to be loaded.
import concurrent.futures.thread  # noqa: F401
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from backends.machine.forks import renew_after_fork
from budget.errors import KeepwarmError
from shim.wire.silence import closed_before, closed_meanwhile


class RunningKeeper(Protocol):
    """The part of an inline keeper that a session uses."""

    @property
    def runtime(self) -> Path:
        """The keeper's folder."""
        ...

    def close(self) -> None:
        """End it with its engines. Idempotent."""
        ...


class InlineStart:
    """Starts at most one keeper at a time. Safe from any thread.

    Args:
        make: makes a running keeper. Each thread that waits gets its error, and the next call tries
            again.
    """

    def __init__(self, make: Callable[[], RunningKeeper]) -> None:
        self._make = make
        self._keeper: RunningKeeper | None = None
        self._owner = os.getpid()
        self._attempt: Future[RunningKeeper | None] | None = None
        self._lock = threading.Lock()
        self._closed = False
        renew_after_fork(self)

    @property
    def running(self) -> RunningKeeper | None:
        """The keeper, once it runs."""
        return self._keeper

    def start(self) -> RunningKeeper:
        """The keeper that runs; it is started when there is none.

        Raises:
            InvalidRequest: the session is closed.
            KeepwarmError: why the keeper cannot run.
        """
        while True:
            with self._lock:
                if self._closed:
                    raise closed_before()
                if self._keeper is not None:
                    return self._keeper
                others = self._attempt
                if others is None:
                    ours = self._attempt = Future[RunningKeeper | None]()
            if others is None:
                return self._try(ours)
            if (keeper := others.result()) is not None:
                return keeper

    def _try(self, attempt: Future[RunningKeeper | None]) -> RunningKeeper:
        try:
            keeper = self._make()
        except BaseException as error:
            self._attempt = None
            if isinstance(error, KeepwarmError):
                attempt.set_exception(error)
            else:
                # It is this thread's own error, so one of the waiting threads starts again.
                attempt.set_result(None)
            raise
        with self._lock:
            self._attempt = None
            closed = self._closed
            if not closed:
                self._keeper, self._owner = keeper, os.getpid()
        if closed:
            keeper.close()
            attempt.set_exception(closed_meanwhile())
            raise closed_meanwhile()
        attempt.set_result(keeper)
        return keeper

    def close(self) -> None:
        """End the keeper, unless the parent of this process started it. Idempotent."""
        with self._lock:
            self._closed = True
            keeper, self._keeper = self._keeper, None
        if keeper is not None and self._owner == os.getpid():
            keeper.close()

    def forked(self) -> None:
        """In a forked child: use the parent's keeper without ending it, and do not wait for its start."""
        self._lock, self._attempt = threading.Lock(), None
