"""Old traces, removed from a folder of runs with their lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from traces.chrome.file import stem_of, trace_files
from traces.processes.late_parts import late_parts
from traces.processes.shared_run import SUFFIX as OPEN
from traces.processes.shared_run import is_open, marker_of
from traces.runs import FILE_NAME, RunLine, drop_runs, read_runs

UNFINISHED_S: Final = 86_400.0
"""A trace of which nothing says whether its run goes on is left until it was not written to for so long."""


@dataclass(frozen=True, slots=True)
class TracesKept:
    """What stays: the last `runs` traces, none older than `age_s`, of `n_bytes` in all. None: no limit."""

    runs: int | None = None
    age_s: float | None = None
    n_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TraceFileFound:
    """A trace's file as it lies there."""

    path: Path
    n_bytes: int
    age_s: float


def to_prune(folder: Path, kept: TracesKept, now_s: float) -> list[TraceFileFound]:
    """The traces that go, newest first.

    Args:
        folder: of the runs.
        kept: what stays.
        now_s: the time of day.

    Raises:
        OSError: the folder cannot be read.
    """
    known = (
        {line.trace for line in read_runs(folder / FILE_NAME) if isinstance(line, RunLine)}
        if (folder / FILE_NAME).exists()
        else set()
    )
    found = [
        TraceFileFound(path, state.st_size, now_s - state.st_mtime)
        for path, state in trace_files(folder)
    ]
    found.sort(key=lambda one: one.age_s)
    runs = {
        stem: is_open(path) for path in folder.glob(f"*{OPEN}") if (stem := path.name[: -len(OPEN)])
    }
    going, total, count = [], 0, 0
    for one in found:
        if str(one.path.absolute()) not in known and _is_written(one, runs):
            continue
        total, count = total + one.n_bytes, count + 1
        too_many = kept.runs is not None and count > kept.runs
        too_old = kept.age_s is not None and one.age_s > kept.age_s
        if too_many or too_old or (kept.n_bytes is not None and total > kept.n_bytes):
            going.append(one)
    return going


def _is_written(one: TraceFileFound, runs: Mapping[str, bool]) -> bool:
    """Whether a trace without a line has to be left. `runs`: whether each that has no end is open."""
    name = stem_of(one.path)
    # The further files of a run are numbered; what says whether it is open is named as its first.
    said = [held for run, held in runs.items() if name == run or name.startswith(f"{run}-")]
    return any(said) if said else one.age_s < UNFINISHED_S


def prune(folder: Path, going: list[TraceFileFound]) -> None:
    """Remove these traces and their lines.

    Raises:
        OSError: one cannot be removed.
    """
    for one in going:
        one.path.unlink(missing_ok=True)
        # What a killed run left beside it.
        for part in late_parts(one.path):
            part.unlink(missing_ok=True)
        marker = marker_of(one.path)
        if not is_open(marker):
            marker.unlink(missing_ok=True)
    drop_runs(folder / FILE_NAME, {str(one.path.absolute()) for one in going})
