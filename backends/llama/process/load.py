"""One load of a llama-server, watched from its start until it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from backends.engine_process.ceiling import Ceilings
from backends.engine_process.process import EngineProcess
from backends.llama.process.load_progress import LoadProgress
from backends.llama.process.start_failures import load_error, stalled
from backends.machine.processes import IoCounts, io_counts, process_bytes
from budget.errors import KeepwarmError
from budget.footprint import HOST, EngineArgs

_LOOK_S = 0.02
"""Seconds between two looks at a load's progress."""
_ASK_S = 1.0
"""Seconds between two questions for its health, until its log says that it is ready."""
_ASK_AGAIN_S = 0.005


@dataclass(frozen=True, slots=True)
class Loading:
    """A load that is under way.

    Attributes:
        process: the process that loads.
        model_path: the model's file.
        model_id: its name in errors.
        args: the arguments of the process.
        file_bytes: the bytes of all its files.
        stall_s: a load that neither reads, grows nor logs for so long is given up.
        ceilings: the most bytes that it may take.
        said_ready: set when its log says that it is ready.
        healthy: asks whether it answers.
    """

    process: EngineProcess
    model_path: Path
    model_id: str
    args: EngineArgs
    file_bytes: int
    stall_s: float
    ceilings: Ceilings
    said_ready: asyncio.Event
    healthy: Callable[[], Awaitable[bool]]

    async def until_ready(self, on_progress: Callable[[float], None]) -> IoCounts:
        """Return when the engine answers, with the bytes that it read until then.

        Raises:
            LoadFailed: it ended; `OutOfMemory` when bytes were refused, or it took too many.
            EngineTimeout: it makes no progress.
        """
        booked = self.ceilings.booked.get(HOST, 0)
        progress = LoadProgress(self.file_bytes, booked, time.monotonic())
        ask_at_s = time.monotonic() + _ASK_S
        ended = asyncio.ensure_future(self.process.wait())
        ready = asyncio.ensure_future(self.said_ready.wait())
        try:
            while True:
                watched = {ended} if ready.done() else {ended, ready}
                pause_s = _ASK_AGAIN_S if ready.done() else _LOOK_S
                await asyncio.wait(watched, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise await self._ended(ended.result())
                now_s = time.monotonic()
                # A question costs the load time.
                if ready.done() or now_s >= ask_at_s:
                    if await self.healthy():
                        on_progress(1.0)
                        return io_counts(self.process.pid)
                    ask_at_s = now_s + _ASK_S
                progress.look(io_counts(self.process.pid), self.process.log.lines_seen, now_s)
                on_progress(progress.fraction)
                self._check(progress, now_s)
        finally:
            ended.cancel()
            ready.cancel()

    def _check(self, progress: LoadProgress, now_s: float) -> None:
        log_tail = self.process.log.tail
        held = process_bytes(self.process.pid)
        own = {HOST: held.own} if held else {}
        if too_much := self.ceilings.exceeded(self.model_id, own, log_tail):
            raise too_much
        if progress.stalled_for_s(now_s) > self.stall_s:
            raise stalled(self.model_path, progress.fraction, self.stall_s, log_tail)

    async def _ended(self, code: int) -> KeepwarmError:
        log = self.process.log
        return await load_error(self.model_path, code, log.lines, log.tail, self.args)
