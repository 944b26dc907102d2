"""Pins that end with their session: each lives as long as the connection on which it was made."""

from __future__ import annotations

import threading
from typing import Any

from backends.forks import renew_after_fork
from budget.errors import KeeperUnavailable
from shim.sync_line import KeeperLine, LinePool
from shim.wire import Message


class Pins:
    """The connections that hold a session's pins, by model. Safe from any thread."""

    def __init__(self, lines: LinePool) -> None:
        self._lines = lines
        self.forked()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the pins are the parent's."""
        self._held: dict[str, KeeperLine] = {}
        self._lock = threading.Lock()

    def pin(self, model: str, fields: dict[str, Any]) -> Message:
        """Pin a model; the pin that was here before is replaced.

        Raises:
            KeepwarmError: it cannot be pinned.
        """
        line, told = self._lines.ask_keeping("lease", **fields)
        with self._lock:
            before, self._held[model] = self._held.get(model), line
        if before is not None:
            before.close()
        return told

    def unpin(self, model: str) -> None:
        """Take a pin away, whoever made it.

        Raises:
            KeepwarmError: no keeper could be reached.
        """
        with self._lock:
            line = self._held.pop(model, None)
        if line is not None:
            try:
                line.ask("hint", kind="unpin", model=model)
                return
            except KeeperUnavailable:
                # The keeper that held it is gone; what the next one pins is asked there.
                pass
            finally:
                line.close()
        self._lines.ask("hint", kind="unpin", model=model)

    def close(self) -> None:
        """Close the connections: the pins end."""
        with self._lock:
            lines, self._held = list(self._held.values()), {}
        for line in lines:
            line.close()
