"""Pins that end with their session: each ends with the connection on which it was made."""

from __future__ import annotations

import threading
from typing import Any

from backends.machine.forks import renew_after_fork
from budget.errors import KeeperUnavailable
from shim.wire.json_lines import Message
from shim.wire.threads import BlockingConnection, BlockingPool


class Pins:
    """The connections that hold a session's pins, by model. Safe from any thread."""

    def __init__(self, connections: BlockingPool) -> None:
        self._connections = connections
        self.forked()
        renew_after_fork(self)

    def forked(self) -> None:
        """In a forked child: the pins are the parent's."""
        self._held: dict[str, BlockingConnection] = {}
        self._lock = threading.Lock()

    def pin(self, model: str, fields: dict[str, Any]) -> Message:
        """Pin a model; the pin that was here before is replaced.

        Raises:
            KeepwarmError: it cannot be pinned.
        """
        connection, answer = self._connections.ask_keeping("lease", **fields)
        with self._lock:
            before, self._held[model] = self._held.get(model), connection
        if before is not None:
            before.close()
        return answer

    def unpin(self, model: str) -> None:
        """Remove a pin, whichever program made it.

        Raises:
            KeepwarmError: no keeper could be reached.
        """
        with self._lock:
            connection = self._held.pop(model, None)
        if connection is not None:
            try:
                connection.ask("hint", kind="unpin", model=model)
                return
            except KeeperUnavailable:
                # The keeper that held the pin is gone; the next keeper is asked about its own pins.
                pass
            finally:
                connection.close()
        self._connections.ask("hint", kind="unpin", model=model)

    def close(self) -> None:
        """Close the connections: the pins end."""
        with self._lock:
            connections, self._held = list(self._held.values()), {}
        for connection in connections:
            connection.close()
