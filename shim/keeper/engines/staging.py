"""Reading the files of engines that will be needed soon into the page cache, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from backends.machine.files.page_cache import CHUNK_BYTES, missing_bytes, stage_file
from budget import events as ev
from budget.errors import LoadFailed
from shim.keeper import limits
from shim.keeper.engines.ending import seen
from shim.keeper.shell.fault_counts import text_of
from shim.keeper.shell.history import StageStory
from shim.keeper.shell.owed_events import OwedEvent


class Stager:
    """Carries out the core's `Stage` and `StopStaging`; every staging ends with `StageFinished`.

    Args:
        rate_bytes_per_s: how fast to read at most; None as fast as the disk gives. A change counts
            from the next file on.
    """

    def __init__(self, rate_bytes_per_s: float | None) -> None:
        self.rate_bytes_per_s = rate_bytes_per_s
        self._reading: dict[str, tuple[asyncio.Task[None], StageStory]] = {}

    def owed_event(self, engine_id: str, files: Sequence[Path], record: StageStory) -> OwedEvent:
        """The staging of an engine's files, as work for `OwedEvents.begin`."""

        def failed(error: BaseException) -> ev.StageFinished:
            record.error = text_of(error)
            return _finished(engine_id, record)

        what = f"staging {record.model}"
        # The load that follows a failed staging reports the failure to the client that asked.
        return OwedEvent(
            "stage", what, lambda: self._stage(engine_id, files, record), failed, may_fail=True
        )

    async def _stage(
        self, engine_id: str, files: Sequence[Path], record: StageStory
    ) -> ev.StageFinished:
        """Read an engine's files until they lie in the page cache, or `stop` is called."""
        reading = asyncio.get_running_loop().create_task(self._read(files, record))
        reading.add_done_callback(seen)
        mine = self._reading[engine_id] = reading, record
        try:
            await self._until_read(reading, record)
        finally:
            reading.cancel()
            if self._reading.get(engine_id) is mine:
                del self._reading[engine_id]
        if not record.stopped:
            reading.result()
        return _finished(engine_id, record)

    async def _until_read(self, reading: asyncio.Task[None], record: StageStory) -> None:
        patience_s, rate = limits.SILENT_STAGE_S, self.rate_bytes_per_s
        if rate is not None:
            patience_s = max(patience_s, 4 * CHUNK_BYTES / rate)
        while not reading.done():
            before = record.read_bytes
            await asyncio.wait({reading}, timeout=patience_s)
            if record.read_bytes == before and not reading.done():
                raise LoadFailed(
                    f"Nothing of {record.model} could be read for {patience_s:g} s.",
                    hint="Look after the disk that the model lies on.",
                )

    def stop(self, engine_id: str) -> None:
        """End a staging between two chunks; no effect when it has ended."""
        reading, record = self._reading.get(engine_id, (None, None))
        if reading is not None and record is not None:
            record.stopped = True
            reading.cancel()

    async def _read(self, files: Sequence[Path], record: StageStory) -> None:
        for file in files:
            missing = await asyncio.to_thread(missing_bytes, file)
            if missing == 0:
                continue
            before = record.read_bytes

            def progressed(done: float, missing: int = missing, before: int = before) -> None:
                record.read_bytes = before + int(done * missing)

            await stage_file(file, rate_bytes_per_s=self.rate_bytes_per_s, on_progress=progressed)


def _finished(engine_id: str, record: StageStory) -> ev.StageFinished:
    record.end_ns = time.monotonic_ns()
    return ev.StageFinished(engine_id, record.read_bytes)
