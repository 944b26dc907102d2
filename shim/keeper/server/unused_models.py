"""Drops the models of further projects once their programs are gone."""

from __future__ import annotations

import time
from collections.abc import Callable

from shim.config import FOREVER
from shim.keeper.server.clients import Clients


class UnusedModels:
    """Knows when each model of a further project was last in use.

    Models of the first project stay, as in a keeper of one project.

    Args:
        clients: the keeper's clients, which name models.
        clock: returns monotonic seconds.
    """

    def __init__(self, clients: Clients, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients = clients
        self._clock = clock
        self._used_s: dict[str, float] = {}
        """When a model was last found in use, or first seen (monotonic)."""

    async def look(self) -> None:
        """Drop the models that no connected client has named for `idle_exit`, unless they are held."""
        keeper = self._clients.keeper
        projects, bound_s = keeper.changes.projects, keeper.config.keeper.idle_exit
        further = projects.config.models.keys() - projects.by_key[projects.main].named().keys()
        in_use, now_s = self._clients.models_in_use, self._clock()
        self._used_s = {
            name: now_s if name in in_use else self._used_s.get(name, now_s) for name in further
        }
        if bound_s != FOREVER:
            unused = {name for name, at_s in self._used_s.items() if now_s - at_s >= bound_s}
            await keeper.changes.forget(unused - in_use)
