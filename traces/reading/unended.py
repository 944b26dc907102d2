"""Runs that have a trace and no line: those that are recorded now, and those that were killed."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from traces.chrome.file import stem_of, trace_files
from traces.place import opened_regular, size_without_nuls
from traces.processes.shared_run import facts_in, is_open, marker_of_run
from traces.runs import RunLine

RECORDING: Final = "recording"
"""The status of a run whose process holds it open."""
NOT_ENDED: Final = "not ended"
"""The status of a run that was killed, or whose process says nothing about it."""
NO_LINE: Final = "no line"
"""The status of a whole file: that of `trace merge`, or of a run whose line was lost."""

_DATED: Final = re.compile(r"(\d{8}T\d{6}Z)-")


def unended_runs(folder: Path, known: Collection[str]) -> list[RunLine]:
    """The runs of a folder that have no line, by the time of their last write.

    Args:
        folder: of the traces.
        known: the traces that have a line.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path, state in trace_files(folder):
        # One may be another user's.
        with suppress(OSError):
            if str(path.absolute()) not in known:
                found.append((state.st_mtime, _line(path, state)))
    return [line for _, line in sorted(found, key=lambda one: one[0])]


def _line(path: Path, state: os.stat_result) -> RunLine:
    marker = marker_of_run(path)
    facts = facts_in(marker)
    began_s = _began(marker, stem_of(path), state)
    return RunLine(
        run_id=stem_of(path),
        service="" if facts is None else str(facts.service),
        started=datetime.fromtimestamp(began_s, UTC).isoformat(timespec="milliseconds"),
        seconds=max(0.0, state.st_mtime - began_s),
        status=_status(path, marker, state.st_size),
        trace=str(path.absolute()),
    )


def _status(path: Path, marker: Path, size: int) -> str:
    if is_open(marker):
        return RECORDING
    return NO_LINE if path.name.endswith(".gz") or _is_whole(path, size) else NOT_ENDED


def _is_whole(path: Path, size: int) -> bool:
    with opened_regular(path) as file:
        size = size_without_nuls(file.fileno(), size)
        return os.pread(file.fileno(), 8, max(0, size - 8)).rstrip().endswith(b"]")


def _began(marker: Path, stem: str, state: os.stat_result) -> float:
    """When a run began: as its name says, else when it was opened, else when it last wrote."""
    if dated := _DATED.match(stem):
        with suppress(ValueError):
            return datetime.strptime(dated[1] + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    with suppress(OSError):
        return min(marker.lstat().st_mtime, state.st_mtime)
    return state.st_mtime
