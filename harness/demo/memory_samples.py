"""Runs the memory sampler as a process beside the demo, and sums up its samples."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shim import InternalError

_PROGRAM = "backends.measure.sampler"
_END_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class EngineLife:
    """One engine process: its model, and the most bytes that were ever measured of the process."""

    pid: int
    model: str
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Measured:
    """The number of samples, the largest sum over all engines, and the peak of every engine."""

    samples: int
    peak_bytes: int
    lives: tuple[EngineLife, ...]

    def peak_of(self, model: str) -> int | None:
        """The most bytes that any engine of a model took; None when no engine of it was seen."""
        return max((life.peak_bytes for life in self.lives if life.model == model), default=None)


class MemorySampler:
    """Samples the engines of a runtime folder in a process of its own, until its `with` ends.

    Args:
        runtime: the keeper's folder.
        device: `host` or `cuda:N`.
    """

    def __init__(self, runtime: Path, device: str = "host") -> None:
        self._command = [sys.executable, "-P", "-m", _PROGRAM, str(runtime), "--device", device]
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="keepwarm-demo-")
        self._file = Path(self._folder.name) / "memory.jsonl"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [*self._command, "--out", str(self._file)], stdin=subprocess.PIPE
        )
        return self

    def __exit__(self, *_failure: object) -> None:
        self.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        """End the process. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(_END_LIMIT_S)
        except BaseException:
            process.kill()
            process.wait()
            raise

    def result(self) -> Measured:
        """Stop, and sum up the samples.

        Raises:
            InternalError: the sampler wrote nothing.
        """
        self.stop()
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        if not lines:
            raise InternalError("the memory sampler ended before its first sample")
        return summarize(json.loads(line) for line in lines)


def summarize(samples: Iterable[Mapping[str, Any]]) -> Measured:
    """The peaks of samples that have the sampler's form."""
    count, peak = 0, 0
    lives: dict[int, EngineLife] = {}
    for sample in samples:
        count += 1
        peak = max(peak, int(sample["total_bytes"]))
        for pid, row in sample["engines"].items():
            before = lives.get(int(pid))
            most = max(int(row["bytes"]), before.peak_bytes if before else 0)
            lives[int(pid)] = EngineLife(int(pid), str(row["model"]), most)
    return Measured(count, peak, tuple(lives.values()))
