"""Measure a keeper's engines from outside: `python sampler.py RUNTIME_FOLDER --out FILE`.

A program of its own on purpose, of the standard library (and NVML for a GPU) alone: it shares no code
with what it measures. It writes one JSON object per sample, `{"ns", "total_bytes", "engines":
{PID: {"model", "bytes"}}}`, with monotonic nanoseconds and PSS, or NVML's process figure on a GPU.
It ends when its standard input does.
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
_PSS = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)

Measure = Callable[[Iterable[int]], dict[int, int]]


def engine_pids(runtime: Path, proc: Path = Path("/proc")) -> list[int]:
    """The engines of a keeper: processes whose environment names its runtime folder."""
    marker = f"{OWNER_VARIABLE}={runtime.resolve()}".encode()
    found = []
    for entry in os.listdir(proc):  # noqa: PTH208 - twenty times a second
        if not entry.isdigit():
            continue
        try:
            with open(f"{proc}/{entry}/environ", "rb") as file:  # noqa: PTH123
                if marker in file.read().split(b"\0"):
                    found.append(int(entry))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def model_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The model's name: llama-server's `--alias`; empty when the process has none (yet)."""
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


def take(runtime: Path, measure: Measure, names: dict[int, str]) -> dict[str, Any]:
    """One sample; `names` remembers the models of process numbers that were seen before."""
    amounts = measure(engine_pids(runtime))
    for pid in amounts:
        names[pid] = names.get(pid) or model_of(pid)
    return {
        "ns": time.monotonic_ns(),
        "total_bytes": sum(amounts.values()),
        "engines": {str(pid): {"model": names[pid], "bytes": n} for pid, n in amounts.items()},
    }


def sample_until_eof(runtime: Path, measure: Measure, out: IO[str], interval_s: float) -> None:
    """Write a sample every `interval_s` until standard input ends."""
    names: dict[int, str] = {}
    due_s = time.monotonic()
    while True:
        out.write(json.dumps(take(runtime, measure, names)) + "\n")
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
