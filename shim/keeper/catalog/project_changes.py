"""Changes of the configurations that a running keeper knows: models taken in and dropped, and reloads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from backends.machine.bounded_questions import in_own_thread
from budget.admission.state import CoreState
from budget.errors import UnknownModel
from shim.config import Config
from shim.keeper.catalog.core_settings import restart_keys
from shim.keeper.catalog.projects import Projects, key_of
from shim.keeper.catalog.refresh import CatalogRefresh
from shim.wire.fingerprint import is_reference, name_of

LOG = logging.getLogger("keepwarm.keeper")


class ProjectChanges:
    """The projects of one keeper. Changes happen one after the other.

    Args:
        projects: those that the keeper starts with.
        refresh: takes over their models.
        state: the core's, which knows the models that something holds.
    """

    def __init__(self, projects: Projects, refresh: CatalogRefresh, state: CoreState) -> None:
        self.projects = projects
        self.began_with = projects.config
        self.on_change: Callable[[Projects], None] | None = None
        """Called with the projects when they changed, on another thread."""
        self._refresh = refresh
        self._state = state
        self._lock = asyncio.Lock()

    def names_of(self, said: Sequence[str]) -> list[str]:
        """The keeper's names of models, by what a client calls them.

        Raises:
            UnknownModel: the keeper does not know some of the client's models. The client then hands them
                over (`take_in`) and asks again.
        """
        references = self.projects.references
        unknown = [one for one in said if is_reference(one) and one not in references]
        if unknown:
            raise UnknownModel(
                f"The keeper has no model {', '.join(map(name_of, unknown))} with these settings.",
                hint="The next request of its program hands it over.",
                not_taken_in=list(unknown),
            )
        return [references.get(one, one) for one in said]

    async def take_in(self, given: Config) -> None:
        """Take over some models of a client's configuration, each as its project has it now.

        A model whose settings changed gets another engine; the old one leaves when no request leases it.

        Raises:
            ConfigError: the client's reading of its configuration is older than the keeper's.
        """
        async with self._lock:
            after = await in_own_thread(self.projects.with_models, given)
            await self._change(after)
        LOG.info(
            "taken in for project %s: %s",
            after.by_key[key_of(given)].label,
            ", ".join(given.models),
        )

    async def forget(self, names: Collection[str]) -> None:
        """Drop models of projects that are gone; those that something holds stay."""
        if not names:
            return
        async with self._lock:
            gone = set(names) - self._held()
            if gone:
                await self._change(await in_own_thread(self.projects.without, gone))
                LOG.info("dropped, because no program uses them: %s", ", ".join(sorted(gone)))

    async def reload(self, config: Config, in_use: Collection[str] = ()) -> dict[str, list[str]]:
        """Take over another configuration; models that did not change stay warm.

        Args:
            config: the whole configuration of its project.
            in_use: models of other projects that their programs may still ask for. Others are dropped,
                unless something holds them.

        Returns:
            The models by what happened to them (`reread`: only their files changed), the other keys that
            changed, and `restart`: the keys that take effect only when the keeper starts again.

        Raises:
            ConfigError: the configuration is not valid; nothing changed.
        """
        async with self._lock:
            held = self._held() | set(in_use)
            after = await in_own_thread(self.projects.with_config, config, held)
            diff = await in_own_thread(self.projects.config.diff, after.config)
            reread = await self._refresh.reload(after.config, after.by_key[after.front].named())
            await self._changed(after)
        restart = restart_keys(self.began_with, config)
        if restart:
            LOG.warning("not in effect before a restart: %s", ", ".join(restart))
        return {
            "added": list(diff.added),
            "removed": list(diff.removed),
            "changed": list(diff.changed),
            "reread": [name for name in diff.unchanged if name in reread],
            "unchanged": [name for name in diff.unchanged if name not in reread],
            "settings": [key for key in diff.sections if key not in restart],
            "restart": restart,
        }

    async def _change(self, after: Projects) -> None:
        diff = self.projects.config.diff(after.config)
        if diff.added or diff.removed or diff.changed:
            await self._refresh.change(after.config)
        await self._changed(after)

    async def _changed(self, after: Projects) -> None:
        self.projects = after
        if self.on_change is not None:
            await asyncio.to_thread(self.on_change, after)

    def _held(self) -> set[str]:
        """The models that are pinned, leased or waited for."""
        held = set(self._state.holders) | {request.model for request in self._state.queue}
        return held | {x.model for e in self._state.residents for x in e.leases.values()}
