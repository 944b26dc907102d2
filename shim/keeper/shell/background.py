"""The keeper's recurring jobs: a failed run is followed by the next one, a dead task is started again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from shim.keeper.shell.fault_counts import FaultCounts, text_of

LOG = logging.getLogger("keepwarm.keeper")

FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 60.0
"""The longest pause before a dead task is started again; the pause doubles with each death."""
PERIOD_LIMIT_S: Final = 60.0
CLOSE_LIMIT_S: Final = 5.0

Work = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Job:
    """One recurring job, and its state."""

    name: str
    period_s: float
    work: Work
    limit_s: float
    task: asyncio.Task[None] | None = None
    again: asyncio.TimerHandle | None = None
    deaths: int = 0
    failures: int = 0
    """Failures in a row."""
    failing_since: float = 0.0
    text: str = ""


class Background:
    """Runs jobs, each in a task of its own, until it is closed.

    A run that raises is logged (once for the same text) and counted, and does not end the job. A task
    that dies nevertheless (it was cancelled) is started again after a growing pause.
    """

    def __init__(self, faults: FaultCounts) -> None:
        self._faults = faults
        self._jobs: dict[str, Job] = {}
        self._closed = False

    def every(
        self, name: str, period_s: float, work: Work, *, limit_s: float = PERIOD_LIMIT_S
    ) -> None:
        """Run a job again and again, first after `period_s` seconds.

        Args:
            name: the job's unique name, in the log and in `ps`.
            period_s: from the end of one run to the begin of the next.
            work: one run.
            limit_s: a run that takes longer is cancelled, which counts as a failure.
        """
        job = Job(name, period_s, work, limit_s)
        self._jobs[name] = job
        self._begin(job)

    def change(self, name: str, period_s: float) -> None:
        """Change the period of a job, if there is one of that name, from its next run on."""
        if name in self._jobs:
            self._jobs[name].period_s = period_s

    @property
    def names(self) -> list[str]:
        """The names of all jobs."""
        return list(self._jobs)

    def rows(self) -> list[dict[str, Any]]:
        """The jobs that fail now, JSON-serialisable; `failing_s`: for how many seconds."""
        now = time.monotonic()
        return [
            {
                "task": job.name,
                "failing_s": now - job.failing_since,
                "failures": job.failures,
                "text": job.text,
            }
            for job in self._jobs.values()
            if job.failures
        ]

    async def close(self) -> None:
        """End every job; a job that does not end within a bound is left behind."""
        self._closed = True
        for job in self._jobs.values():
            if job.again is not None:
                job.again.cancel()
        tasks = {job.task for job in self._jobs.values() if job.task is not None}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_LIMIT_S)

    def _begin(self, job: Job) -> None:
        job.again = None
        job.task = asyncio.get_running_loop().create_task(self._run(job))
        job.task.add_done_callback(lambda task: self._ended(job, task))

    async def _run(self, job: Job) -> None:
        while True:
            await asyncio.sleep(job.period_s)
            try:
                async with asyncio.timeout(job.limit_s):
                    await job.work()
            except Exception as error:
                self._failed(job, error)
            else:
                self._worked(job)

    def _ended(self, job: Job, task: asyncio.Task[None]) -> None:
        """Start a dead task again. This is a callback, so that the loop's end can cancel tasks for good."""
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._closed or error is None:
            return
        self._failed(job, error)
        pause_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(job.deaths, 16))
        job.deaths += 1
        job.again = asyncio.get_running_loop().call_later(pause_s, self._begin, job)

    def _failed(self, job: Job, error: BaseException) -> None:
        text = text_of(error)
        if job.failures and text == job.text:
            self._faults.count(job.name, text)
        else:
            self._faults.note(job.name, job.name, error)
        if not job.failures:
            job.failing_since = time.monotonic()
        job.failures += 1
        job.text = text

    @staticmethod
    def _worked(job: Job) -> None:
        if job.failures:
            seconds = time.monotonic() - job.failing_since
            LOG.info("%s: works again after %d failures in %.0f s", job.name, job.failures, seconds)
        job.failures = job.deaths = 0
