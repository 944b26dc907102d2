"""Recurring work of the keeper: failures are counted and said once, and end nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from budget.errors import InternalError
from shim.cli.commands.ps.command import print_faults
from shim.keeper.shell import background as module
from shim.keeper.shell.background import Background
from shim.keeper.shell.fault_counts import LINES_A_MINUTE, FaultCounts

FAILURES = (OSError(28, "no space"), InternalError("a bug"), RuntimeError("odd"), MemoryError())


class Scripted:
    """Work whose times raise what the script says, and then nothing more."""

    def __init__(self, *script: BaseException | None) -> None:
        self._script = list(script)
        self.times = 0
        self.over = asyncio.Event()

    async def __call__(self) -> None:
        """One time."""
        self.times += 1
        await asyncio.sleep(0)
        error = self._script.pop(0) if self._script else None
        if not self._script and error is None:
            self.over.set()
        if error is not None:
            raise error


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """What died is begun again at once."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that failures left in the log."""
    caplog.set_level(logging.INFO, "keepwarm.keeper")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


def run(work: Scripted, seen: Callable[[Background], Any] = lambda _: None) -> FaultCounts:
    """Run a job until its script is over; returns what was noted."""

    async def scenario() -> FaultCounts:
        faults = FaultCounts()
        background = Background(faults)
        background.every("the job", 0.0, work)
        await work.over.wait()
        seen(background)
        await background.close()
        return faults

    return asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(
    "error", [*FAILURES, asyncio.CancelledError()], ids=lambda e: type(e).__name__
)
def test_a_failing_time_is_logged_once_and_the_job_goes_on(
    error: BaseException, lines: Callable[[], list[str]]
) -> None:
    """Whatever is raised: the next time comes, the count shows it, the log has one line."""
    work = Scripted(error, None, None)
    faults = run(work)
    assert work.times == 3
    assert [(row["kind"], row["count"]) for row in faults.rows()] == [("the job", 1)]
    assert len(lines()) == 1


def test_the_same_failure_again_and_again_is_one_line(lines: Callable[[], list[str]]) -> None:
    """Each is counted; another text is another line; recovery is said and ends the failing."""
    same = [OSError(28, "no space") for _ in range(5)]
    failing: list[Any] = []
    work = Scripted(*same, RuntimeError("other"), None)
    faults = run(work, lambda background: failing.extend(background.rows()))
    assert len(lines()) == 2
    assert faults.rows()[0]["count"] == 6
    assert work.times == 7


def test_a_job_that_fails_says_since_when() -> None:
    """`ps` shows a job that fails now, and none that works again."""

    async def scenario() -> None:
        background = Background(FaultCounts())
        seen: list[list[dict[str, Any]]] = []
        over = asyncio.Event()

        async def work() -> None:
            seen.append(background.rows())
            if len(seen) == 1:
                raise OSError(28, "no space")
            if len(seen) == 3:
                over.set()

        background.every("the job", 0.0, work)
        await over.wait()
        await background.close()
        assert [len(rows) for rows in seen] == [0, 1, 0]
        (row,) = seen[1]
        assert (row["task"], row["failures"]) == ("the job", 1)
        assert row["failing_s"] >= 0.0
        assert "no space" in row["text"]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_time_that_hangs_is_a_failure() -> None:
    """It is cancelled at its limit, and the next time comes."""

    async def scenario() -> None:
        faults, again = FaultCounts(), asyncio.Event()
        background, times = Background(faults), 0

        async def work() -> None:
            nonlocal times
            times += 1
            if times > 1:
                again.set()
            await asyncio.get_running_loop().create_future()

        background.every("the job", 0.0, work, limit_s=0.001)
        await again.wait()
        assert faults.rows()[0]["text"].startswith("TimeoutError")
        await background.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_loop_that_ends_takes_its_jobs_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that was never closed does not hold up the end of its loop."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 1.0)

    async def scenario() -> None:
        Background(FaultCounts()).every("the job", 0.0, Scripted())
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_an_error_that_passes_two_hands_is_one_fault(lines: Callable[[], list[str]]) -> None:
    """The first code that notes it logs it."""
    faults, error = FaultCounts(), RuntimeError("odd")
    faults.note("core", "handling an event", error)
    faults.note("measuring", "measuring", error)
    assert [row["kind"] for row in faults.rows()] == ["core"]
    assert len(lines()) == 1


def test_a_flood_of_faults_does_not_fill_the_log(lines: Callable[[], list[str]]) -> None:
    """Beyond a number of lines a minute a kind is counted on in silence."""
    faults = FaultCounts()
    for number in range(10 * LINES_A_MINUTE):
        faults.note("grant", "a grant", RuntimeError(f"number {number}"))
    assert len(lines()) == LINES_A_MINUTE
    assert faults.rows()[0]["count"] == 10 * LINES_A_MINUTE


def test_ps_shows_faults_and_failing_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each; a job that fails now is not listed twice."""
    faults = FaultCounts()
    faults.note("load", "loading a", RuntimeError("odd"))
    failing = {"task": "measuring", "failing_s": 12.0, "failures": 6, "text": "OSError: no"}
    faults.count("measuring", "OSError: no")
    print_faults({"faults": faults.rows(), "background": [failing]})
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == ["FAILING for 12 s", "faults"]
    assert "load, 1 since the start" in out[1]


@pytest.mark.parametrize(("agree", "said"), [(True, "they agree"), (False, "DO NOT AGREE: 12 b")])
def test_ps_says_whether_the_books_agree_after_an_internal_error(
    capsys: pytest.CaptureFixture[str], agree: bool, said: str
) -> None:
    """One line, and what does not."""
    print_faults({"books": {"agree": agree, "text": "12 bytes", "checked_s": 3.0}})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("books: checked 3.00 s ago")
    assert said in line
