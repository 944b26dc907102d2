"""Which run is being traced here: one context variable, read by every request."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from traces.run import RunTrace


class RunContext:
    """The current run of every context, and of threads that have none of their own.

    A run follows its context into asyncio tasks. A plain thread starts with an empty context: it belongs
    to the process's one active run, unless several are active or that one is not `process_wide`.
    """

    def __init__(self) -> None:
        self._current: ContextVar[RunTrace | None] = ContextVar("keepwarm_run", default=None)
        self._open: tuple[RunTrace, ...] = ()
        self._inherited: RunTrace | None = None
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def get(self) -> RunTrace | None:
        """The active run that this code belongs to, or None."""
        run = self._current.get()
        if run is not None:
            return run if run.active else None
        if not self._open:
            inherited = self._inherited
            return inherited if inherited is not None and inherited.active else None
        return self._of_a_plain_thread()

    def inherit(self, run: RunTrace | None) -> None:
        """Where this process opens no run, the one of the process that started it is the current one."""
        self._inherited = run

    def _of_a_plain_thread(self) -> RunTrace | None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            runs = self._open
            return runs[0] if len(runs) == 1 and runs[0].process_wide else None
        # A task without a run in its context was started outside of every run.
        return None

    def enter(self, run: RunTrace) -> RunTrace | None:
        """Make `run` the current one of this context; returns the one before it."""
        with self._lock:
            self._open = (*self._open, run)
        return self.adopt(run)

    def leave(self, run: RunTrace, before: RunTrace | None) -> None:
        """Undo `enter`; also from another context than the one that entered."""
        with self._lock:
            self._open = tuple(other for other in self._open if other is not run)
        if self._current.get() is run:
            self._current.set(before)

    def adopt(self, run: RunTrace | None) -> RunTrace | None:
        """Make `run` the current one of this context only; returns the one before it."""
        before = self._current.get()
        self._current.set(run)
        return before

    def _forked(self) -> None:
        self._lock = threading.Lock()
        inherited, run = self._inherited, self._current.get()
        if inherited is not None and not inherited.after_fork():
            self._inherited = None
        self._open = tuple(one for one in self._open if one.after_fork())
        if run is not None and not run.active:
            self._current.set(None)


def owner() -> tuple[object, str]:
    """The asyncio task that runs this code, or the thread outside of any, as a key and by name.

    The key keeps no task alive, whose result may be large, but it is no other task's while it is kept.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is not None:
        key = weakref.ref(task)
        # It remembers its hash, and cannot make it any more once the task is gone.
        hash(key)
        return key, task.get_name()
    thread = threading.current_thread()
    return thread.ident, thread.name
