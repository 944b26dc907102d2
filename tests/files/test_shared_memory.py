"""Shared memory of programs that were killed: found while they run, removed when they have ended."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from backends.machine.files.shared_memory import remove_segments, segments_of

_MAKES = """
import multiprocessing, sys
from multiprocessing.shared_memory import SharedMemory
lock = multiprocessing.get_context("spawn").Lock()
memory = SharedMemory(create=True, size=4096)
print(memory.name, "sem." + lock._semlock.name.lstrip("/"), flush=True)
sys.stdin.read()
"""


def test_what_a_killed_program_left_is_removed_and_nothing_else() -> None:
    """A segment of a program that still runs stays, even when its name is given."""
    ours = SharedMemory(create=True, size=4096)
    program = subprocess.Popen(
        [sys.executable, "-c", _MAKES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert program.stdout is not None
        left = program.stdout.readline().split()
        found = segments_of([program.pid])
        assert sorted(found) == left
        assert remove_segments(found) == []
        # The group, because the program's own helper would remove the segment otherwise.
        os.killpg(program.pid, 9)
        program.communicate()
        assert all(Path("/dev/shm", name).exists() for name in left)
        assert remove_segments([*left, ours.name, "psm_00000000"]) == left
        assert not any(Path("/dev/shm", name).exists() for name in left)
        assert Path("/dev/shm", ours.name).exists()
    finally:
        ours.close()
        ours.unlink()


def test_processes_that_have_ended_have_no_segments() -> None:
    """A process of that number may not exist."""
    assert segments_of([2**22 + 1]) == set()
