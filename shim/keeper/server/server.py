"""The keeper's server: a Unix socket on which clients ask for leases.

One connection is one client. Ops are answered by id. When the connection closes, the client's requests
are cancelled and its leases end at once.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from shim.keeper.keeper import Keeper
from shim.keeper.server.clients import Clients
from shim.keeper.server.listener import Listener
from shim.keeper.server.silent_clients import SilentClients
from shim.keeper.server.unused_models import UnusedModels

LOG = logging.getLogger("keepwarm.keeper")

BEAT_S: Final = 2.0
FORGET_EVERY_S: Final = 10.0


class Server:
    """Accepts connections for one keeper."""

    def __init__(self, keeper: Keeper, stop: asyncio.Event) -> None:
        self.keeper = keeper
        self.clients = Clients(keeper, stop)
        self._listener = Listener(self.clients)
        self._beating = False
        self._silent = SilentClients(self.clients)
        self._unused = UnusedModels(self.clients)
        keeper.shell.on_revoke = self.clients.revoked
        keeper.shell.on_yield = self.clients.ask_yield

    def listen(self, path: Path) -> None:
        """Listen on a Unix socket of mode 0600, in place of the socket that lay there before.

        Raises:
            ConfigError: another file lies there, or the path is too long.
            OSError: the socket cannot be made.
        """
        self._listener.listen(path)
        if not self._beating:
            self._beating = True
            self.keeper.background.every("looking after clients", BEAT_S, self._beat)
            self.keeper.background.every("asking silent clients", BEAT_S, self._silent.look)
            self.keeper.background.every(
                "dropping models of projects that are gone", FORGET_EVERY_S, self._unused.look
            )

    @property
    def is_reachable(self) -> bool:
        """Whether new clients find the socket where it was made."""
        return self._listener.is_reachable()

    def stop_listening(self) -> None:
        """Accept no more clients, and remove the socket file; connected clients stay."""
        self._listener.close()

    def close(self) -> None:
        """Accept no more clients, and drop every connected one."""
        self.stop_listening()
        self.clients.drop()

    async def _beat(self) -> None:
        self.clients.beat()
