"""Reading the files of engines that will be needed soon into the page cache, one at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.page_cache import resident_fraction, stage_file
from budget import events as ev
from budget.errors import KeepwarmError
from shim.keeper.history import StageStory

LOG = logging.getLogger("keepwarm.keeper")


class Stager:
    """Carries out `Stage` and `StopStaging`; every staging ends with `StageFinished`.

    Args:
        rate_bytes_per_s: how fast to read at most; None as fast as the disk gives. A change counts
            from the next file on.
        post: the way into the core.
    """

    def __init__(self, rate_bytes_per_s: float | None, post: Callable[[ev.Event], None]) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._post = post
        self._reading: dict[str, asyncio.Task[None]] = {}

    async def stage(self, engine_id: str, files: Sequence[Path], story: StageStory) -> None:
        """Read an engine's files until they lie in the page cache, or `stop`."""
        reading = asyncio.ensure_future(self._read(files, story))
        self._reading[engine_id] = reading
        try:
            await asyncio.wait({reading})
        finally:
            reading.cancel()
            self._reading.pop(engine_id, None)
        if not reading.cancelled() and (error := reading.exception()) is not None:
            if not isinstance(error, KeepwarmError):
                raise error
            # The load that follows will say it to somebody who asked.
            story.error = str(error)
            LOG.warning("staging %s: %s", story.model, error)
        story.stopped = reading.cancelled()
        story.end_ns = time.monotonic_ns()
        self._post(ev.StageFinished(engine_id, story.read_bytes))

    def stop(self, engine_id: str) -> None:
        """End a staging between two chunks; no effect when it has ended."""
        reading = self._reading.get(engine_id)
        if reading is not None:
            reading.cancel()

    async def _read(self, files: Sequence[Path], story: StageStory) -> None:
        for file in files:
            missing = 1.0 - await asyncio.to_thread(resident_fraction, file)
            if missing == 0.0:
                continue
            size, before = await asyncio.to_thread(_size, file), story.read_bytes

            def progressed(
                done: float, file_bytes: float = missing * size, before: int = before
            ) -> None:
                story.read_bytes = before + int(done * file_bytes)

            await stage_file(file, rate_bytes_per_s=self.rate_bytes_per_s, on_progress=progressed)


def _size(file: Path) -> int:
    return file.stat().st_size
