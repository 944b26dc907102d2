"""What the kernel counts for processes: real ones, ended ones, and those that are not ours to look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.machine import processes

FAMILY = "import subprocess; subprocess.run(['sh', '-c', 'echo $$; read line; exit'])"
NO_PROCESS = (1 << 22) + 1
"""A number above the kernel's largest."""


@contextmanager
def family() -> Iterator[tuple[int, int]]:
    """A process that has a child; both end with the block. Yields their numbers."""
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OF_A_TEST": "yes"},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        yield parent.pid, int(parent.stdout.readline())
        parent.stdin.close()


def test_a_tree_is_a_process_and_what_it_started() -> None:
    """Descendants of descendants, and nothing of another family; an ended process has no tree."""
    with family() as (parent, child):
        assert processes.process_tree(parent) == [parent, child]
        assert {parent, child} < set(processes.process_tree(os.getpid()))
    assert processes.process_tree(parent) == []


def test_the_figures_of_a_process_that_runs() -> None:
    """Shares of its own and of files are parts of the whole; what it read and used only grows."""
    own = os.getpid()
    whole = processes.pss_bytes([own])
    parts = [processes.pss_bytes([own], part) for part in ("Pss_Anon", "Pss_File")]
    assert whole
    assert all(part and part < whole for part in parts)
    held, counts = processes.process_bytes(own), processes.io_counts(own)
    state = processes.process_state(own)
    assert held
    assert 0 < held.own < held.resident
    assert counts.rchar > 0
    assert counts.rss_bytes > held.own
    assert state
    assert (state.parent, state.stopped) == (os.getppid(), False)


def test_what_has_ended_holds_nothing() -> None:
    """Gone, or a zombie that is not waited for: 0 bytes, no state that counts, no error."""
    ended = subprocess.Popen(["true"])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert processes.pss_bytes([ended.pid, NO_PROCESS]) == 0
    ended.wait()
    assert processes.process_state(NO_PROCESS) is None
    assert processes.process_bytes(NO_PROCESS) is None
    assert processes.user_of(NO_PROCESS) is None
    assert processes.command_line(NO_PROCESS) == []
    assert processes.io_counts(NO_PROCESS) == processes.IoCounts()


def test_a_figure_that_may_not_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's process takes memory that is not known; that is never 0 bytes."""
    read = processes._read
    monkeypatch.setattr(
        processes, "_read", lambda pid, name: b"" if name.startswith("smaps") else read(pid, name)
    )
    assert processes.pss_bytes([os.getpid()]) is None


def test_a_kernel_without_sums_is_asked_for_each_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of `smaps` add up to what `smaps_rollup` says elsewhere."""
    files = {"smaps": b"1-2 r--p\nPss: 3 kB\nPss_Dirty: 1 kB\n2-3 rw-p\nPss: 4 kB\n"}
    monkeypatch.setattr(processes, "_read", lambda _pid, name: files.get(name, b""))
    assert processes.pss_bytes([1, 2]) == 2 * 7 * 1024


def test_a_process_is_known_by_its_environment_and_its_words() -> None:
    """As they were when it was started."""
    with family() as (parent, child):
        assert processes.has_variable(child, "OF_A_TEST=yes")
        assert not processes.has_variable(child, "OF_A_TEST=ye")
        assert processes.command_line(parent) == [sys.executable, "-c", FAMILY]
        assert {parent, child} < set(processes.all_pids())
        assert processes.user_of(child) == os.getuid()
