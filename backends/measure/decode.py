"""Seconds of a token, by `llama-bench`: the best repetition of each run, the median over runs."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.foreign.foreign_json import parse_json
from backends.llama.binaries import find_binary, library_env
from backends.machine.children import Answered, ask_child
from backends.machine.devices import llama_device_names
from backends.machine.environment import child_environment
from backends.machine.gpus import gpu_environment
from budget.errors import MeasurementFailed
from budget.footprint import HOST

_PRIORITY: Final = "2"
_TAIL_LINES: Final = 8
_NO_NUMBER: Final = re.compile(r"(?<=:) *-?(nan|inf)\b")
"""llama-bench's deviation of samples that hardly differ is the root of a negative number, by rounding."""


@dataclass(frozen=True, slots=True)
class DecodeRun:
    """One run to measure: a file, the place of its layers, the number of tokens and of repetitions."""

    path: Path
    device: str = HOST
    n_gpu_layers: int = 0
    rpc: tuple[str, ...] = ()
    tokens: int = 8
    repetitions: int = 3
    repack: bool = True


@dataclass
class DecodeTimer:
    """Runs llama-bench, with priority over other programs where the system allows it."""

    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    timeout_s: float = 120.0
    _priority: str = field(default=_PRIORITY, init=False)

    def token_s(self, run: DecodeRun) -> float:
        """Seconds of a token in the best repetition, which other programs disturbed least.

        Raises:
            ConfigError: llama-bench is not installed.
            MeasurementFailed: it failed or took too long. Facts: `file`, `log_tail`.
        """
        done = self._bench(run)
        if done.code and self._priority != "0":
            self._priority = "0"
            done = self._bench(run)
        try:
            rows = parse_json(_NO_NUMBER.sub(" null", done.out))
            samples = [float(ns) for ns in rows[-1]["samples_ns"]]
            return min(samples) / 1e9 / run.tokens
        except (ValueError, LookupError, TypeError) as error:
            unread = "" if done.code else f"\nits answer cannot be read: {error}"
            raise _failed(run, done.code, done.log + unread) from None

    def _bench(self, run: DecodeRun) -> Answered:
        binary = find_binary("llama-bench")
        # A device is known to llama-bench only after its server was named.
        command = [str(binary), *(("-rpc", ",".join(run.rpc)) if run.rpc else ())]
        command += ["-m", str(run.path), "-o", "json", "-p", "0"]
        command += ["-n", str(run.tokens), "-r", str(run.repetitions), "-t", str(self.threads)]
        command += ["--prio", self._priority, "-lm", "none", "-ngl", str(run.n_gpu_layers)]
        command += ["-dev", "/".join(llama_device_names([run.device]))]
        command += ["--repack", "1" if run.repack else "0"]
        env = child_environment({**library_env(binary), **gpu_environment([run.device])})
        done = ask_child(command, env, self.timeout_s)
        if done.cut:
            how = f"more than {self.timeout_s:g} s" if done.cut == "time" else "too much output"
            raise _failed(run, None, how)
        return done


def medians(timer: DecodeTimer, runs: Sequence[DecodeRun], rounds: int) -> list[float]:
    """The median seconds of a token of each run over rounds that take the runs in turn.

    Raises:
        MeasurementFailed: a run failed.
    """
    seen: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for number, run in enumerate(runs):
            seen[number].append(timer.token_s(run))
    return [statistics.median(row) for row in seen]


def _failed(run: DecodeRun, code: int | None, log: str) -> MeasurementFailed:
    tail: list[Any] = [line for line in log.splitlines() if line.strip()][-_TAIL_LINES:]
    how = "took too long" if code is None else f"ended with {code}"
    return MeasurementFailed(
        f"llama-bench {how} on {run.path.name} with {run.n_gpu_layers} layers on {run.device}.",
        hint="Its last lines are in `log_tail`.",
        file=str(run.path),
        log_tail=tail,
    )
