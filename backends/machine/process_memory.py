"""Measured bytes of a process tree on the host: its proportional set size."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import psutil


def process_tree(pid: int) -> list[int]:
    """A process and its descendants; empty when it has ended."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return []


def pss_bytes(pids: Iterable[int]) -> int | None:
    """The sum of the processes' proportional set sizes, in bytes; None where one is not to be had.

    From `/proc/PID/smaps_rollup`; where that is not readable, psutil's USS. Ended ones count 0.
    """
    found = [_pss_of(pid) for pid in pids]
    known = [amount for amount in found if amount is not None]
    return sum(known) if len(known) == len(found) else None


def file_pss_bytes(pids: Iterable[int]) -> int:
    """The sum of the processes' shares of mapped files' pages, in bytes; 0 where it is not to be had."""
    return sum(_rollup(pid, "Pss_File") or 0 for pid in pids)


def _pss_of(pid: int) -> int | None:
    found = _rollup(pid, "Pss")
    return _uss_of(pid) if found is None else found


def _rollup(pid: int, key: str) -> int | None:
    """A line of `/proc/PID/smaps_rollup` in bytes, 0 without it; `None` when it cannot be read."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return None
    hit = re.search(rf"^{key}:\s+(\d+) kB", text, re.MULTILINE)
    return int(hit.group(1)) * 1024 if hit else 0


def _uss_of(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.Error:
        return None
