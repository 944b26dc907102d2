"""A thread that does what a run's callers put off: they append a tuple, it builds and writes."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

GATHER_SECONDS = 0.1
"""How long records are gathered before they are written. A killed process loses as much."""

MOST_WAITING = 131_072
"""Records that may wait to be written. More are dropped and counted: a slow disk costs no memory."""

_YIELD_EVERY = 16
"""Records after which the thread lets callers run: they wait for less than a millisecond."""

Deferred = tuple[Any, ...]
"""A function and its arguments."""


class Writer:
    """Calls what is put into it, in order, in a thread that starts with the first of it.

    Args:
        name: of the thread.
        report: called with what is broken and how.
        written: called after each batch, in the same thread.
        at_start: called with the first of all, by what puts it.
    """

    def __init__(
        self,
        name: str,
        report: Callable[[str, str], None],
        written: Callable[[], None],
        *,
        at_start: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._report = report
        self._written = written
        self._at_start = at_start
        self._waiting: deque[Deferred] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._draining = threading.RLock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._dropped = 0
        self._pid = os.getpid()

    def put(self, deferred: Deferred) -> None:
        """Have `deferred` called soon. Costs about a microsecond."""
        if len(self._waiting) >= MOST_WAITING:
            self._dropped += 1
            return
        self._waiting.append(deferred)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._start()

    def flush(self) -> None:
        """Call all that was put so far, here and now, and have it written."""
        if os.getpid() != self._pid:
            # What waits was put by the parent of this forked child, which writes it.
            return
        with self._draining:
            self._drain(yields=False)

    def do(self, action: Callable[[], None]) -> None:
        """Call all that was put so far and then `action`, here and now."""
        with self._draining:
            self._drain(yields=False)
            action()

    def close(self) -> None:
        """Call what is left and end the thread. Idempotent."""
        self._closed = True
        self._hurry.set()
        self._wake.set()
        self.flush()
        atexit.unregister(self.flush)

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self._closed:
                return
            # A program may end without leaving its run.
            atexit.register(self.flush)
            if self._at_start is not None:
                self._at_start()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait()
            self._hurry.wait(GATHER_SECONDS)
            self._wake.clear()
            with self._draining:
                self._drain(yields=True)

    def _drain(self, *, yields: bool) -> None:
        done = 0
        # Not what comes meanwhile: threads that never stop recording would hold up a run's end for ever.
        left = len(self._waiting)
        while left and self._waiting:
            left -= 1
            action, *arguments = self._waiting.popleft()
            try:
                action(*arguments)
            except Exception as error:
                self._report("recorder", f"{type(error).__name__}: {error}")
            done += 1
            if done % _YIELD_EVERY == 0 and yields and not self._closed:
                time.sleep(0)
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._report(
                "records", f"{dropped} were dropped: they came faster than they are written"
            )
        if done:
            try:
                self._written()
            except Exception as error:
                self._report("trace file", f"{type(error).__name__}: {error}")
