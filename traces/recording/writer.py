"""A thread that does what a run's callers put off: they append a tuple, it builds and writes."""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from traces.recording.broken_sinks import Problems, Tally
from traces.recording.held_bytes import SMALL_BYTES

GATHER_SECONDS = 0.1
"""How long records are gathered before they are written. A killed process loses as much."""

MOST_WAITING = 131_072
"""Records that may wait to be written. More are dropped and counted: a slow disk costs neither memory nor
the time of a caller, which would wait for the disk otherwise."""

MOST_WAITING_BYTES = 64 * 1024 * 1024
"""Bytes of records with more than `SMALL_BYTES` that may wait. More are dropped and counted, too."""

_WRITE_BYTES: Final = 8 * 1024 * 1024
"""Bytes of records that are built before they are written."""

END_SECONDS = 20.0
"""How long what waits may hold up the end of a run: enough for all of it on a machine with other work. What
is left then is dropped and counted."""

_TOO_FAST: Final = "were dropped: they came faster than they are written"
_TOO_LONG: Final = (
    f"were dropped: {MOST_WAITING_BYTES >> 20} MiB of such records may wait to be written"
)
_TOO_MANY: Final = (
    f"were dropped: the end of the run waits {END_SECONDS:g} s for what is not written yet"
)
_INTERRUPTED: Final = "were dropped: the end of the run was interrupted"
_TOO_LATE: Final = "came after the end of the run and were dropped"

_YIELD_EVERY = 16
"""Records after which the thread lets callers run: they wait for less than a millisecond."""

Deferred = tuple[Any, ...]
"""A function and its arguments."""


class Writer:
    """Calls what is put into it, in order, in a thread that starts with the first of it.

    Args:
        name: of the thread.
        problems: where failures go, and how many records were dropped.
        written: called after each batch, in the same thread.
        at_start: called with the first of all, by what puts it.
    """

    def __init__(
        self,
        name: str,
        problems: Problems,
        written: Callable[[], None],
        *,
        at_start: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._problems = problems
        self._written = written
        self._at_start = at_start
        self._waiting: deque[Deferred] = deque()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._draining = threading.RLock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._ending: int | None = None
        """The thread that ends the run, once it does: no other one's records are taken then."""
        self._too_fast, self._too_long, self._too_late = Tally(), Tally(), Tally()
        # A finalizer, or the handler of a signal, may record within any step here.
        self._sizing = threading.RLock()
        self._long_bytes = 0
        """Of the records that wait and have more than `SMALL_BYTES`."""
        self._unwritten_bytes = 0
        self._pid = os.getpid()

    def put(self, deferred: Deferred, n_bytes: int = 0) -> None:
        """Have `deferred`, which keeps so many bytes in memory, called soon. Costs about a microsecond."""
        if self._ending is not None and self._ending != threading.get_ident():
            self._too_late.add()
            return
        if len(self._waiting) >= MOST_WAITING:
            self._too_fast.add()
            return
        if n_bytes > SMALL_BYTES:
            with self._sizing:
                if self._long_bytes + n_bytes > MOST_WAITING_BYTES:
                    self._too_long.add()
                    return
                self._long_bytes += n_bytes
            deferred = (self._call_long, n_bytes, *deferred)
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

    def end(self, action: Callable[[], None] | None = None) -> None:
        """Take only what this thread records from now on; call what was put before, and then `action`.

        Whatever other threads do, that takes no longer than `END_SECONDS` and the action.
        """
        self._ending = threading.get_ident()
        try:
            with self._draining:
                self._drain(yields=False, within_s=END_SECONDS)
                if action is not None:
                    action()
        except BaseException:
            # Ctrl-C: what waits is not written in the steps that follow either.
            self._drop()
            raise

    def close(self) -> None:
        """Call what is left, as `end` does, and end the thread. Idempotent."""
        self._ending, self._closed = threading.get_ident(), True
        self._hurry.set()
        self._wake.set()
        try:
            self._flush_at_end()
        finally:
            atexit.unregister(self._flush_at_end)
            self._drop()

    def _drop(self) -> None:
        self._problems.count("records", len(self._waiting), _INTERRUPTED)
        self._clear()

    def _clear(self) -> None:
        self._waiting.clear()
        with self._sizing:
            self._long_bytes = 0

    def _call_long(self, n_bytes: int, action: Callable[..., None], *arguments: object) -> None:
        with self._sizing:
            self._long_bytes -= n_bytes
        self._unwritten_bytes += n_bytes
        action(*arguments)

    def _flush_at_end(self) -> None:
        if os.getpid() == self._pid:
            with self._draining:
                self._drain(yields=False, within_s=END_SECONDS)

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self._closed:
                return
            # A program may end without leaving its run.
            atexit.register(self._flush_at_end)
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
                if self._ending is None:
                    self._drain(yields=True)

    def _drain(self, *, yields: bool, within_s: float | None = None) -> None:
        done = 0
        # Not what comes meanwhile: threads that never stop recording would hold up a flush for ever.
        left = len(self._waiting)
        until_s = time.monotonic() + (math.inf if within_s is None else within_s)
        while left and self._waiting:
            if time.monotonic() >= until_s:
                self._problems.count("records", len(self._waiting), _TOO_MANY)
                self._clear()
                break
            if within_s is None and self._ending not in (None, threading.get_ident()):
                # What is left is the ending thread's to do, within its bound.
                break
            left -= 1
            action, *arguments = self._waiting.popleft()
            try:
                action(*arguments)
            except Exception as error:
                self._problems.report("recorder", f"{type(error).__name__}: {error}")
            done += 1
            if self._unwritten_bytes >= _WRITE_BYTES:
                self._write()
            if done % _YIELD_EVERY == 0 and yields:
                time.sleep(0)
        self._problems.count("records that came too fast", self._too_fast.take(), _TOO_FAST)
        self._problems.count("records with long values", self._too_long.take(), _TOO_LONG)
        self._problems.count("records that came too late", self._too_late.take(), _TOO_LATE)
        if done:
            self._write()

    def _write(self) -> None:
        self._unwritten_bytes = 0
        self._problems.guard("trace file", self._written)
