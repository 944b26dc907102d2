"""Engines that report no bytes, as programs of others do: what they take is known by measurement alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from backends.base import LoadReport
from backends.engine_process.ceiling import PlausibleCeilings
from backends.engine_process.process_engine import ProcessEngine, gpus_of
from backends.engine_process.surroundings import cached_share, sizes_of, storage_of
from backends.machine.bounded_questions import asked
from backends.machine.processes import IoCounts
from budget.footprint import GUESSED, Placement

_Spec = TypeVar("_Spec")


class MeasuredEngine(ProcessEngine, Generic[_Spec]):
    """A process whose bytes are measured, because it does not tell them.

    Args:
        spec: what is run.
        model_id: the model's name.
        runtime_dir: the keeper's private folder.
        stall_s: a load that neither reads, grows, logs nor computes for so long is given up.
        margin_bytes: that of `[keeper] engine_margin`; 0 means no bound.
    """

    _called: ClassVar[str]
    """What runs, in messages."""
    _files_hint: ClassVar[str] = "Check `files` of the model."

    def __init__(
        self,
        spec: _Spec,
        model_id: str,
        runtime_dir: Path,
        *,
        stall_s: float = 60.0,
        margin_bytes: int = 0,
    ) -> None:
        super().__init__(model_id, runtime_dir, self._called)
        self._spec = spec
        self._stall_s = stall_s
        self._margin_bytes = margin_bytes
        self._guessed = False
        self._set_up()

    def _set_up(self) -> None:
        """Make what a subclass has beside that."""

    def _expect(self, placement: Placement) -> None:
        """Note the GPUs, and the bytes that it may take."""
        self._gpus = gpus_of(placement)
        self._guessed = placement.source in GUESSED
        self._ceilings = PlausibleCeilings.of(placement, self._margin_bytes)

    async def _loaded(
        self,
        files: tuple[Path, ...],
        load: Callable[[int], Awaitable[IoCounts]],
        measure: Callable[[], Awaitable[dict[str, int]]],
    ) -> LoadReport:
        """The report of a load; one that fails ends the process.

        Args:
            files: what it reads, as far as that is known.
            load: loads these bytes of files.
            measure: the bytes by device once it has loaded, as far as the report tells them.

        Raises:
            LoadFailed: a file is not there.
        """
        sizes = await asked(sizes_of, files, self._files_hint)
        cached = await cached_share(sizes)
        started_ns = time.monotonic_ns()
        file_bytes = sum(sizes.values())
        try:
            counts = await load(file_bytes)
        except BaseException:
            await asyncio.shield(self.stop(grace_s=0.0))
            raise
        return LoadReport(
            started_ns=started_ns,
            ready_ns=time.monotonic_ns(),
            storage=storage_of(file_bytes, counts.disk_bytes, cached),
            file_bytes=file_bytes,
            read_bytes=counts.disk_bytes,
            buffers=await measure(),
            pid=self.pid,
        )

    async def _measured(self) -> dict[str, int]:
        """The bytes that it takes now, of the devices where they are known."""
        found = await asked(self.memory)
        return {device: taken for device, taken in found.items() if taken is not None}

    async def _first_measure(self) -> dict[str, int]:
        """The bytes after the load, where the booking was a guess: from now on these are believed."""
        if not self._guessed:
            return {}
        found = await self._measured()
        self._ceilings = PlausibleCeilings(found, self._margin_bytes)
        return found
