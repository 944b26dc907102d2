"""The end of a child is awaited without threads, and the keeper's threads run before they are needed."""

from __future__ import annotations

import _thread
import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.engine_process.child_end import exit_code
from backends.machine import bounded_questions
from backends.machine.bounded_questions import in_own_thread
from budget.errors import LoadFailed
from shim.keeper.process.ready_threads import ReadyThreads

LIMIT_S = 20.0


def child(code: str) -> subprocess.Popen[bytes]:
    """A Python program that reads its standard input."""
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


async def ended(process: subprocess.Popen[bytes], by: Callable[[], object]) -> int:
    """Its exit code; it is ended when the wait has begun."""
    waiting = asyncio.create_task(exit_code(process))
    await asyncio.sleep(0)
    assert not waiting.done()
    by()
    async with asyncio.timeout(LIMIT_S):
        return await waiting


def descriptors() -> set[str]:
    """The open files of this process."""
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def no_handle(_pid: int) -> int:
    """What the kernel answers at the limit of open files."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.fixture(params=["kernel", "looks"])
def _told_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells the end, or has no descriptor for that."""
    if request.param == "looks":
        monkeypatch.setattr(os, "pidfd_open", no_handle)


@pytest.mark.usefixtures("_told_by")
def test_the_exit_code_of_a_child_is_its_own_or_its_signal() -> None:
    """An exit status is told as it is, a signal as its negative number."""
    own = child("import sys; sys.exit(7 if sys.stdin.read() == '' else 1)")
    assert own.stdin is not None
    assert asyncio.run(ended(own, own.stdin.close)) == 7
    with child("import sys; sys.stdin.read()") as killed:
        assert asyncio.run(ended(killed, killed.kill)) == -signal.SIGKILL


def test_no_thread_is_started_for_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Thread.start` waits for ever for a thread that found no memory, so no child needs one."""
    monkeypatch.setattr(
        threading.Thread, "start", lambda _self: pytest.fail("a thread was started")
    )
    with child("import sys; sys.stdin.read()") as process:
        assert asyncio.run(ended(process, process.kill)) == -signal.SIGKILL


def test_a_wait_that_is_cancelled_leaves_no_descriptor() -> None:
    """The child goes on, and another wait hears its end."""

    async def scenario(process: subprocess.Popen[bytes]) -> int:
        before = descriptors()
        waiting = asyncio.create_task(exit_code(process))
        await asyncio.sleep(0)
        assert descriptors() != before
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert descriptors() == before
        return await ended(process, process.kill)

    with child("import sys; sys.stdin.read()") as process:
        assert asyncio.run(scenario(process)) == -signal.SIGKILL


def test_a_thread_that_never_begins_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that found no memory ends before its first line, and tells nothing."""
    monkeypatch.setattr(_thread, "start_new_thread", lambda *_: 1)
    monkeypatch.setattr(bounded_questions, "START_LIMIT_S", 0.01)
    with pytest.raises(LoadFailed, match="does not begin"):
        asyncio.run(in_own_thread(int))


def test_a_keepers_threads_are_there_before_they_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Work of the event loop starts no thread, and what it raises reaches the caller."""

    async def scenario() -> list[int | BaseException]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(threads)
        works = [asyncio.to_thread(int, text) for text in ("1", "x", "3")]
        return await asyncio.gather(*works, return_exceptions=True)

    threads = ReadyThreads(2)
    with asyncio.Runner() as runner:
        with monkeypatch.context() as patched:
            patched.setattr(
                threading.Thread, "start", lambda _self: pytest.fail("a thread was started")
            )
            first, second, third = runner.run(scenario())
        assert (first, third) == (1, 3)
        assert isinstance(second, ValueError)


def test_the_end_of_a_keepers_threads_waits_for_work_that_has_begun() -> None:
    """Work that is asked for before the end is done; the threads are gone after it."""
    threads, done = ReadyThreads(2), threading.Event()
    future = threads.submit(done.set)
    threads.shutdown()
    assert done.is_set()
    assert future.done()
    assert not [
        t for t in threading.enumerate() if t.name == "keepwarm-work" and t in threads._ready
    ]
