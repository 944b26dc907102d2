"""One load of an engine, watched from its start until it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from backends.engine_process.ceiling import Ceilings
from backends.engine_process.load_progress import LoadProgress
from backends.engine_process.process import EngineProcess
from backends.machine.processes import (
    IoCounts,
    io_counts,
    process_bytes,
    process_tree,
    sum_of_counts,
    sum_of_cpu,
)
from budget.errors import EngineTimeout, KeepwarmError
from budget.footprint import HOST

_LOOK_S = 0.02
"""Seconds between two looks at a load's progress."""
_LOOK_AT_TREE_S = 0.25
"""The same where each look reads all processes of the machine."""
_ASK_S = 1.0
"""Seconds between two questions for its health, until its log says that it is ready."""
_ASK_AGAIN_S = 0.005


@dataclass(frozen=True, slots=True)
class Loading:
    """A load that is under way.

    Attributes:
        process: the process that loads.
        what: what is loaded, in errors.
        model_id: its name in errors.
        file_bytes: the bytes of all its files.
        stall_s: a load that neither reads, grows nor logs for so long is given up.
        ceilings: the most bytes that it may take.
        said_ready: set when it has said that it is ready.
        healthy: asks whether it answers; may raise why it never will.
        ended: the error of a process that ended while it loaded, by its exit code.
        patience: how many times longer it may take while it computes.
        whole: whether children of the process load for it, so that their figures count as well.
        ask_s: seconds between two questions for its health, until its log says that it is ready.
    """

    process: EngineProcess
    what: str
    model_id: str
    file_bytes: int
    stall_s: float
    ceilings: Ceilings
    said_ready: asyncio.Event
    healthy: Callable[[], Awaitable[bool]]
    ended: Callable[[int], Awaitable[KeepwarmError]]
    patience: float = 1.0
    whole: bool = False
    ask_s: float = _ASK_S

    async def until_ready(self, on_progress: Callable[[float], None]) -> IoCounts:
        """Return when the engine answers, with the bytes that it read until then.

        Raises:
            LoadFailed: it ended; `OutOfMemory` when bytes were refused, or it took too many.
            EngineTimeout: it makes no progress.
        """
        booked = self.ceilings.booked.get(HOST, 0)
        progress = LoadProgress(self.file_bytes, booked, time.monotonic())
        ask_at_s = time.monotonic() + self.ask_s
        ended = asyncio.ensure_future(self.process.wait())
        ready = asyncio.ensure_future(self.said_ready.wait())
        try:
            while True:
                watched = {ended} if ready.done() else {ended, ready}
                look_s = _LOOK_AT_TREE_S if self.whole else _LOOK_S
                pause_s = _ASK_AGAIN_S if ready.done() else look_s
                await asyncio.wait(watched, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise await self.ended(ended.result())
                now_s = time.monotonic()
                # A question costs the load time.
                if ready.done() or now_s >= ask_at_s:
                    if await self.healthy():
                        on_progress(1.0)
                        return self._counts()
                    ask_at_s = now_s + self.ask_s
                progress.look(self._counts(), self.process.log.lines_seen, now_s)
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
        if progress.stalled_for_s(now_s) > self.stall_s and not self._computes(progress, now_s):
            raise stalled(self.what, progress.fraction, self.stall_s, log_tail)

    def _computes(self, progress: LoadProgress, now_s: float) -> bool:
        """Whether a load without progress may go on, because its process uses the CPU."""
        if self.patience <= 1.0 or progress.stalled_for_s(now_s) > self.stall_s * self.patience:
            return False
        return progress.used_cpu(sum_of_cpu(self._processes()), now_s, self.stall_s)

    def _processes(self) -> list[int]:
        return process_tree(self.process.pid) if self.whole else [self.process.pid]

    def _counts(self) -> IoCounts:
        return sum_of_counts(self._processes()) if self.whole else io_counts(self.process.pid)


def stalled(what: str, fraction: float, stall_s: float, log_tail: Sequence[str]) -> EngineTimeout:
    """The error of a load that made no progress for too long."""
    return EngineTimeout(
        f"loading {what} made no progress for {stall_s:g} s ({fraction:.0%} loaded).",
        hint="Look at the engine's last lines, or raise the stall time-out.",
        stall_s=stall_s,
        fraction=round(fraction, 3),
        log_tail=list(log_tail),
    )
