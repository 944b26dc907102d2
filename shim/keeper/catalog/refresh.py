"""Keeps the catalog of a running keeper up to date with the configuration and the models' files."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from backends.machine.bounded_questions import in_own_thread
from budget.errors import InternalError, KeepwarmError, LoadFailed, RoleViolation
from shim.config import Config
from shim.keeper.catalog.broken_models import BrokenModel
from shim.keeper.catalog.catalog import (
    Catalog,
    Found,
    catalog_of,
    read_changed,
    read_model,
    read_models,
)
from shim.keeper.catalog.preparing import watched_files
from shim.keeper.engines.ending import seen
from shim.placement.requested import stamp_of

LOG = logging.getLogger("keepwarm.keeper")

READ_LIMIT_S: Final = 120.0
"""No request waits longer for its model to be read; a dry measurement has a bound of half of that."""
LOOK_AGAIN_S: Final = 1.0
"""A request looks at its model's files when the last look is older. A load looks at them in any case."""
_ROUNDS: Final = 2
"""How often a file that changes while it is read is read again before its request goes on."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The reading of one model, and when it began (monotonic)."""

    task: asyncio.Task[None]
    began_s: float


class CatalogRefresh:
    """Reads models again, each by itself, so that a slow or broken model does not delay the others.

    Args:
        catalog: the catalog that the keeper started with.
        adopt: puts a new catalog into `catalog` once the core has accepted it, or raises the core's
            refusal.
    """

    def __init__(self, catalog: Catalog, adopt: Callable[[Catalog], None]) -> None:
        self.catalog = catalog
        self._adopt = adopt
        self._reading: dict[str, _Reading] = {}
        self._looked_s: dict[str, float] = {}
        """When each model's files were last found to be those that are known (monotonic)."""

    def unfit(self, model: str) -> RoleViolation | None:
        """The error of an evaluator that was read and is under the floor."""
        prepared = self.catalog.prepared.get(model)
        return None if prepared is None else prepared.unfit

    def check_fit(self, model: str) -> None:
        """Raise the error of an evaluator that was read and is under the floor."""
        if (violation := self.unfit(model)) is not None:
            raise violation

    def check_role(self, model: str) -> None:
        """Raise the error of a model whose file, as it is now, does not meet its role."""
        broken = self.catalog.broken_models.get(model)
        if broken is None or broken.far or not isinstance(broken.error, RoleViolation):
            return
        if broken.stamp == stamp_of(watched_files(self.catalog.config.models[model])):
            raise broken.raised()

    def is_ready(self, model: str) -> bool:
        """Whether a request for a model can go on; no, where finding that out may take its time."""
        now_s = time.monotonic()
        if now_s - self._looked_s.get(model, -math.inf) < LOOK_AGAIN_S:
            return True
        ready = self.catalog.is_ready(model)
        if ready:
            self._looked_at(model)
        return ready

    def look_again(self) -> None:
        """The next request for each model looks at its files."""
        self._looked_s.clear()

    async def make_ready(self, model: str) -> None:
        """Read a model's files again if they changed, could not be read before, or are not downloaded yet.

        All requests that wait for a model share one reading. After a failure the files are not read
        again for a pause that grows with every failure, unless they change.

        Raises:
            KeepwarmError: why the model cannot be run now.
        """
        for _ in range(_ROUNDS):
            catalog = self.catalog
            # A disk that may hang is only asked by the reading, in a thread of its own.
            if not catalog.is_far(model):
                if not catalog.is_stale(model):
                    return
                refusal = catalog.refusal(model, time.monotonic())
                if refusal is not None:
                    raise refusal
            await self._until_read(model)
            if catalog.is_far(model):
                break
        broken = self.catalog.broken_models.get(model)
        if broken is not None:
            raise broken.raised()
        if model in self.catalog.prepared:
            self._looked_at(model)

    def _looked_at(self, model: str) -> None:
        # An unfit file is looked at by every request, so that a better one counts at once.
        if self.catalog.prepared[model].unfit is None:
            self._looked_s[model] = time.monotonic()

    async def reload(self, config: Config, anew: Collection[str]) -> set[str]:
        """Take over another configuration; models that did not change are not read again.

        Args:
            config: the models of all projects.
            anew: those whose configuration was read anew: pins that a hint has ended count again.

        Returns:
            The models that were known before and whose files changed.

        Raises:
            ConfigError: the configuration is impossible here; nothing changed.
        """
        before = self.catalog
        reading = await in_own_thread(read_models, config, before)
        self._adopt(catalog_of(replace(reading, anew=anew), self.catalog))
        return {
            name
            for name, found in reading.found.items()
            if (known := before.known(name)) is not None and known.stamp != found.stamp
        }

    async def change(self, config: Config) -> None:
        """Take over other models under the same sections. New models are read at their first request.

        Raises:
            ConfigError: the core refuses them; nothing changed.
        """
        reading = await in_own_thread(read_changed, config, self.catalog)
        self._adopt(catalog_of(reading, self.catalog))

    def close(self) -> None:
        """Cancel the readings that are under way."""
        for reading in self._reading.values():
            reading.task.cancel()

    async def _until_read(self, model: str) -> None:
        reading = self._reading.get(model) or self._begin(model)
        left_s: float | None = max(0.0, reading.began_s + READ_LIMIT_S - time.monotonic())
        entry = self.catalog.config.models.get(model)
        if entry is not None and entry.hf is not None:
            left_s = None  # a download has no bound
        await asyncio.wait({reading.task}, timeout=left_s)
        if not reading.task.done():
            raise LoadFailed(
                f"The files of {model} could not be read within {READ_LIMIT_S:g} s.",
                hint="Look after the disk, or the machine, that they lie on.",
                model=model,
            )
        reading.task.result()

    def _begin(self, model: str) -> _Reading:
        task = asyncio.get_running_loop().create_task(self._read(model))
        self._reading[model] = _Reading(task, time.monotonic())

        def ended(_: asyncio.Task[None]) -> None:
            del self._reading[model]

        task.add_done_callback(ended)
        task.add_done_callback(seen)
        return self._reading[model]

    async def _read(self, model: str) -> None:
        while True:
            before = self.catalog
            entry = before.config.models.get(model)
            if entry is None or entry.remote:
                return
            found = await in_own_thread(read_model, before, model)
            now = self.catalog
            if now.config.models.get(model) == entry and now.limits == before.limits:
                break
        if found is not None:
            self._take_model(model, found)

    def _take_model(self, model: str, found: Found) -> None:
        before = self.catalog.broken_models.get(model)
        try:
            self._adopt(self.catalog.with_model(model, found))
        except InternalError:
            raise
        except KeepwarmError as error:
            if isinstance(found, BrokenModel):
                raise
            # The model was read, but the core refuses it: its pins may not fit any more.
            stamp, far = found.stamp, found.far
            found = BrokenModel.after(before, error, stamp, time.monotonic(), far=far)
            self._adopt(self.catalog.with_model(model, found))
        if isinstance(found, BrokenModel) and (
            before is None or str(before.error) != str(found.error)
        ):
            LOG.warning("model %s cannot be run now: %s", model, found.error)
