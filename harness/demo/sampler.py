"""Measure a keeper's engines from outside: `python sampler.py RUNTIME_FOLDER --out FILE`.

This is a program of its own on purpose. It uses the standard library alone (and NVML for a GPU), so
that it shares no code with what it measures. It writes one JSON object for each sample:
`{"ns", "total_bytes", "engines": {PID: {"model", "bytes"}}}`, with monotonic nanoseconds and with PSS,
or NVML's process figure on a GPU. The program ends when its standard input ends.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

OWNER_VARIABLE = "KEEPWARM_ENGINE_OF"
INTERVAL_S = 0.05
NEW_FOR_S = 1.0
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)

Measure = Callable[[Iterable[int]], dict[int, int]]


class Engines:
    """The engines of a keeper: processes whose environment names its runtime folder.

    Between fork and exec a process still has its parent's environment; later its environment stays the
    same. So a process that is no engine after its first second is not looked at again.
    """

    def __init__(self, runtime: Path, proc: Path = Path("/proc")) -> None:
        self._marker = f"{OWNER_VARIABLE}={runtime.resolve()}".encode()
        self._proc = proc
        self._first_seen_s: dict[int, float] = {}
        self._ours: set[int] = set()

    def pids(self) -> list[int]:
        """The numbers of the engines that run now."""
        now_s = time.monotonic()
        here = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208
        self._first_seen_s = {pid: self._first_seen_s.get(pid, now_s) for pid in here}
        self._ours &= here
        for pid, first_s in self._first_seen_s.items():
            if pid not in self._ours and now_s - first_s <= NEW_FOR_S and self._is_ours(pid):
                self._ours.add(pid)
        return sorted(self._ours)

    def _is_ours(self, pid: int) -> bool:
        try:
            environment = (self._proc / str(pid) / "environ").read_bytes()
        except OSError:
            return False  # the process has ended, or is another user's
        return self._marker in environment.split(b"\0")


def model_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The model's name: llama-server's `--alias`; empty when the process has none, or has none yet."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return words[words.index("--alias") + 1] if "--alias" in words[:-1] else ""


def pss_bytes(pids: Iterable[int], proc: Path = Path("/proc")) -> dict[int, int]:
    """The proportional set size of each process that still runs."""
    found = {}
    for pid in pids:
        try:
            hit = _PSS.search((proc / str(pid) / "smaps_rollup").read_text())
        except OSError:
            continue
        if hit:
            found[pid] = int(hit[1]) * 1024
    return found


def gpu_measure(index: int) -> Measure:
    """A function that gives NVML's bytes of each process on one GPU."""
    import pynvml  # noqa: PLC0415 - only a machine with a GPU has its library

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def measure(pids: Iterable[int]) -> dict[int, int]:
        running: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        wanted = set(pids)
        return {p.pid: int(p.usedGpuMemory or 0) for p in running if p.pid in wanted}

    return measure


def take(engines: Engines, measure: Measure, names: dict[int, str]) -> dict[str, Any]:
    """One sample; `names` remembers the models of process numbers that were seen before."""
    amounts = measure(engines.pids())
    for pid in amounts:
        names[pid] = names.get(pid) or model_of(pid)
    return {
        "ns": time.monotonic_ns(),
        "total_bytes": sum(amounts.values()),
        "engines": {str(pid): {"model": names[pid], "bytes": n} for pid, n in amounts.items()},
    }


def sample_until_eof(runtime: Path, measure: Measure, out: IO[str], interval_s: float) -> None:
    """Write a sample every `interval_s` until standard input ends."""
    engines, names = Engines(runtime), dict[int, str]()
    due_s = time.monotonic()
    while True:
        out.write(json.dumps(take(engines, measure, names)) + "\n")
        out.flush()
        now_s = time.monotonic()
        due_s = max(due_s + interval_s, now_s)
        readable, _, _ = select.select([sys.stdin], [], [], due_s - now_s)
        if readable and not os.read(sys.stdin.fileno(), 4096):
            return


def main() -> None:
    """Sample until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runtime", type=Path, help="the keeper's folder (`keepwarm ps --json`)")
    parser.add_argument("--out", type=Path, help="file to write to; standard output without it")
    parser.add_argument("--device", default="host", help="host or cuda:N")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, help="seconds")
    options = parser.parse_args()
    # Ctrl-C is for the program that asked; this one ends with its standard input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    device: str = options.device
    measure = gpu_measure(int(device.partition(":")[2])) if device != "host" else pss_bytes
    if options.out is None:
        sample_until_eof(options.runtime, measure, sys.stdout, options.interval)
        return
    with options.out.open("w") as out:
        sample_until_eof(options.runtime, measure, out, options.interval)


if __name__ == "__main__":
    main()
