"""Measure a keeper's engines from outside: `python -m backends.measure.sampler RUNTIME_FOLDER`.

This is a program of its own on purpose: it asks the kernel and the GPU's driver, and no keeper. It
writes one JSON object for each sample: `{"ns", "total_bytes", "engines": {PID: {"model", "bytes"}}}`,
with monotonic nanoseconds and with PSS, or NVML's process figure on a GPU. A process of which neither
tells anything is left out. The program ends when its standard input ends.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from backends.machine.environment import OWNER_VARIABLE
from backends.machine.nvml import gpu_process_bytes
from backends.machine.processes import all_pids, command_line, has_variable, pss_bytes

INTERVAL_S = 0.05
NEW_FOR_S = 1.0

Measure = Callable[[list[int]], int | None]


class Engines:
    """The engines of a keeper: processes whose environment names its runtime folder.

    Between fork and exec a process still has its parent's environment; later its environment stays the
    same. So a process that is no engine after its first second is not looked at again.
    """

    def __init__(self, runtime: Path) -> None:
        self._marker = f"{OWNER_VARIABLE}={runtime.resolve()}"
        self._first_seen_s: dict[int, float] = {}
        self._ours: set[int] = set()

    def pids(self) -> list[int]:
        """The numbers of the engines that run now."""
        now_s = time.monotonic()
        here = set(all_pids())
        self._first_seen_s = {pid: self._first_seen_s.get(pid, now_s) for pid in here}
        self._ours &= here
        for pid, first_s in self._first_seen_s.items():
            if pid not in self._ours and now_s - first_s <= NEW_FOR_S:
                self._ours |= {pid} if has_variable(pid, self._marker) else set()
        return sorted(self._ours)


def model_of(pid: int) -> str:
    """The model's name: llama-server's `--alias`; empty when the process has none, or has none yet."""
    words = command_line(pid)
    return words[words.index("--alias") + 1] if "--alias" in words[:-1] else ""


def take(engines: Engines, measure: Measure, names: dict[int, str]) -> dict[str, Any]:
    """One sample; `names` remembers the models of process numbers that were seen before."""
    measured = {pid: measure([pid]) for pid in engines.pids()}
    amounts = {pid: amount for pid, amount in measured.items() if amount}
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
    gpu = device.partition(":")[2]
    measure = functools.partial(gpu_process_bytes, int(gpu)) if gpu else pss_bytes
    if options.out is None:
        sample_until_eof(options.runtime, measure, sys.stdout, options.interval)
        return
    with options.out.open("w") as out:
        sample_until_eof(options.runtime, measure, out, options.interval)


if __name__ == "__main__":
    main()
