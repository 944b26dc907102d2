"""Measured bytes of a process tree: PSS on the host, NVML's process figure on GPUs."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil


def process_tree(pid: int) -> list[int]:
    """A process and its descendants; empty when it has ended."""
    try:
        root = psutil.Process(pid)
        return [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return []


def pss_bytes(pids: Iterable[int]) -> int:
    """The sum of the processes' proportional set sizes, in bytes.

    From `/proc/PID/smaps_rollup`; where that is not readable, psutil's USS. Ended ones count 0.
    """
    return sum(_pss_of(pid) for pid in pids)


def file_pss_bytes(pids: Iterable[int]) -> int:
    """The sum of the processes' shares of mapped files' pages, in bytes; 0 where it is not to be had."""
    return sum(_rollup(pid, "Pss_File") or 0 for pid in pids)


def _pss_of(pid: int) -> int:
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


def _uss_of(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0


def gpu_bytes(pids: Iterable[int], gpus: Iterable[int]) -> dict[str, int]:
    """NVML's per-process bytes by `cuda:N`, for the GPUs asked for.

    A GPU whose process figure is not to be had (no driver, a container's own process numbers) is
    left out: the caller then uses the device's delta.
    """
    wanted = set(pids)
    nvml = _nvml()
    if nvml is None:
        return {}
    found: dict[str, int] = {}
    for index in gpus:
        used = _gpu_process_bytes(nvml, index, wanted)
        if used is not None:
            found[f"cuda:{index}"] = used
    return found


def _nvml() -> Any | None:
    # NVML is optional at run time: a machine without a driver has no library to load.
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:
        return None
    return nvml


def _gpu_process_bytes(nvml: Any, index: int, pids: set[int]) -> int | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    amounts = [p.usedGpuMemory for p in running if p.pid in pids and p.usedGpuMemory is not None]
    return sum(int(amount) for amount in amounts) if amounts else None
