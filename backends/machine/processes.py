"""The kernel's figures of processes, from `/proc`; no other module reads them.

A process that has ended, or that this user may not look at, has no figures: None, never 0. Client
programs import this module, so it needs no library beside Python's own.
"""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = resource.getpagesize()
_STOPPED: Final = frozenset("Tt")
"""Stopped by a signal, or by a debugger."""
_LISTENS: Final = "0A"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
FEW_FILES: Final = 4
"""A process that has no more descriptors left may open and close its last ones all the time."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process's parent, whether it is stopped, the CPU seconds that it has used, and its group."""

    parent: int
    stopped: bool
    cpu_s: float
    group: int


@dataclass(frozen=True, slots=True)
class ProcessBytes:
    """A process's bytes now: pages in memory, its own pages, and its address space for such pages.

    Pages of mapped files are not its own: they are the page cache's, and no more than the file.
    """

    resident: int
    own: int
    data: int


@dataclass(frozen=True, slots=True)
class IoCounts:
    """Bytes that a process has read (`rchar`), those that came from a disk, and what is in memory."""

    rchar: int = 0
    disk_bytes: int = 0
    rss_bytes: int = 0


def all_pids() -> list[int]:
    """The numbers of all processes that are visible from here; none without `/proc`."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    except OSError:
        return []


def user_of(pid: int) -> int | None:
    """The user that a process runs as."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return None


def has_variable(pid: int, setting: str) -> bool:
    """Whether the environment that a process was started with has this `NAME=value`."""
    return os.fsencode(setting) in _read(pid, "environ").split(b"\0")


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; none where they are not to be had."""
    return _read(pid, "cmdline").decode(errors="replace").split("\0")[:-1]


def process_state(pid: int) -> ProcessState | None:
    """From `/proc/PID/stat`: the state, the parent, utime and stime."""
    # The name of the program, in brackets, may hold blanks and brackets.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    try:
        ticks = int(fields[11]) + int(fields[12])
        stopped = fields[0].decode() in _STOPPED
        return ProcessState(int(fields[1]), stopped, ticks / _TICKS_PER_S, int(fields[2]))
    except (ValueError, IndexError):
        return None


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger."""
    state = process_state(pid)
    return state is not None and state.stopped


def open_files(pid: int) -> int | None:
    """How many descriptors a process has."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    except OSError:
        return None


def has_all_files_it_may(pid: int) -> bool:
    """Whether a process has as many descriptors as its limit allows, or nearly so."""
    limit = re.search(rb"^Max open files\s+(\d+)", _read(pid, "limits"), re.MULTILINE)
    files = open_files(pid)
    return limit is not None and files is not None and files + FEW_FILES >= int(limit[1])


def process_tree(pid: int) -> list[int]:
    """A process and its descendants; empty when it has ended."""
    states = {each: process_state(each) for each in all_pids()}
    if states.get(pid) is None:
        return []
    tree = [pid]
    for above in tree:
        tree += [each for each, state in states.items() if state and state.parent == above]
    return tree


def group_members(group: int) -> list[int]:
    """The processes of a process group, whether or not the process that it is named after still runs."""
    states = ((pid, process_state(pid)) for pid in all_pids())
    return [pid for pid, state in states if state is not None and state.group == group]


def mapped_files(pid: int) -> set[tuple[int, int]]:
    """All files that a process has mapped, shared memory among them: the device and the inode of each."""
    rows = (line.split(None, 5) for line in _read(pid, "maps").splitlines())
    return {(_device(row[3]), int(row[4])) for row in rows if len(row) > 4 and row[4] != b"0"}


def _device(text: bytes) -> int:
    major, _, minor = text.partition(b":")
    return os.makedev(int(major, 16), int(minor, 16))


def process_bytes(pid: int) -> ProcessBytes | None:
    """From `/proc/PID/statm`."""
    try:
        fields = [int(field) * _PAGE_BYTES for field in _read(pid, "statm").split()]
        return ProcessBytes(fields[1], fields[1] - fields[2], fields[5])
    except (ValueError, IndexError):
        return None


def io_counts(pid: int) -> IoCounts:
    """From `/proc/PID/io` and `statm`; zeros when the process has ended."""
    held = process_bytes(pid)
    try:
        pairs = (line.split(b": ") for line in _read(pid, "io").splitlines())
        counts = {name: int(value) for name, value in pairs}
        return IoCounts(counts[b"rchar"], counts[b"read_bytes"], held.resident if held else 0)
    except (ValueError, KeyError):
        return IoCounts()


def sum_of_counts(pids: Iterable[int]) -> IoCounts:
    """The counts of several processes together; pages that they share count for each of them."""
    rows = [io_counts(pid) for pid in pids]
    read, disk = sum(row.rchar for row in rows), sum(row.disk_bytes for row in rows)
    return IoCounts(read, disk, sum(row.rss_bytes for row in rows))


def sum_of_cpu(pids: Iterable[int]) -> float:
    """The CPU seconds that several processes have used; those that have ended count nothing."""
    return sum(state.cpu_s for pid in pids if (state := process_state(pid)) is not None)


def pss_bytes(pids: Iterable[int], part: str = "Pss") -> int | None:
    """The sum of the processes' proportional set sizes; None where one is not to be had.

    A process that has ended counts 0. `part` is a line of `/proc/PID/smaps_rollup`: `Pss_File` is the
    share of mapped files' pages, `Pss_Anon` that of a process's own.
    """
    found = [_pss_of(pid, part) for pid in pids]
    known = [amount for amount in found if amount is not None]
    return sum(known) if len(known) == len(found) else None


def _pss_of(pid: int, part: str) -> int | None:
    # Some kernels have no sums, only a row for each mapping.
    text = _read(pid, "smaps_rollup") or _read(pid, "smaps")
    if not text:
        held = process_bytes(pid)
        return 0 if user_of(pid) is None or (held and not held.resident) else None
    rows = re.findall(rf"^{part}:\s+(\d+) kB".encode(), text, re.MULTILINE)
    return sum(int(row) for row in rows) * 1024


def _read(pid: int, name: str) -> bytes:
    """A file of a process; empty when the process has ended or is not ours to look at."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def listening_ports(pids: Iterable[int]) -> set[int]:
    """The TCP ports that any of these processes listens on; none where `/proc` does not tell."""
    found: set[int] = set()
    for pid in pids:
        if own := _sockets_of(pid):
            found |= {port for inode, port in _listeners(pid) if inode in own}
    return found


def _sockets_of(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208
    except OSError:
        return set()
    found = set()
    for name in names:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
        except OSError:
            continue
        if hit := _SOCKET.fullmatch(target):
            found.add(hit[1])
    return found


def _listeners(pid: int) -> list[tuple[str, int]]:
    """The inode and the port of every listening socket in the network namespace of a process."""
    rows = []
    for table in ("tcp", "tcp6"):
        fields = [line.split() for line in _read(pid, f"net/{table}").decode().splitlines()]
        rows += [
            (row[9], int(row[1].rpartition(":")[2], 16))
            for row in fields[1:]
            if len(row) > 9 and row[3] == _LISTENS
        ]
    return rows
