"""Makes the keeper's folder and socket again when they are gone, so that clients can find the keeper."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backends.machine.files.file_locks import FileLock, lock_keeper
from budget.errors import KeepwarmError
from shim.keeper.server.server import Server
from shim.paths import keeper_socket, make_place

LOG = logging.getLogger("keepwarm.keeper")

LOOK_EVERY_S: Final = 1.0
MOST_FAILED_LOOKS: Final = 3


class Reachable:
    """Watches a keeper's folder, socket and lock, because logind and cleaners remove such files.

    Args:
        runtime: the folder.
        server: listens in it.
        lock: of the folder; None for an inline keeper, which has a folder of its own.
        restored: called when the folder was made again.
        give_up: called when that failed for `MOST_FAILED_LOOKS` looks: the keeper is to end.
    """

    def __init__(
        self,
        runtime: Path,
        server: Server,
        lock: FileLock | None,
        *,
        restored: Callable[[], None] = lambda: None,
        give_up: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._server = server
        self.lock = lock
        self._restored = restored
        self._give_up = give_up
        self._failed = 0

    async def look(self) -> None:
        """Make the files that are gone again.

        Raises:
            KeepwarmError, OSError: it cannot be made now.
        """
        if self._stands():
            self._failed = 0
            return
        try:
            self._restore()
        except (KeepwarmError, OSError) as error:
            self._failed += 1
            if self._failed >= MOST_FAILED_LOOKS:
                LOG.error("this keeper cannot be reached any more and ends: %s", error)
                self._give_up()
            raise
        self._failed = 0
        LOG.warning("%s was gone or replaced; the keeper listens there again", self._runtime)
        self._restored()

    def _stands(self) -> bool:
        return self._server.is_reachable and (self.lock is None or self.lock.still_there())

    def _restore(self) -> None:
        make_place(self._runtime)
        if self.lock is not None and not self.lock.still_there():
            again = lock_keeper(self._runtime)
            self.lock.release()
            self.lock = again
        if not self._server.is_reachable:
            self._server.listen(keeper_socket(self._runtime))
