"""Runs that have a trace and no line: those that are recorded now, and those that were killed."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from traces.chrome.file import SUFFIX, stem_of
from traces.place import size_without_nuls
from traces.processes.shared_run import SUFFIX as OPEN
from traces.processes.shared_run import is_open
from traces.runs import RunLine

RECORDING: Final = "recording"
"""The status of a run whose process holds it open."""
NOT_ENDED: Final = "not ended"
"""The status of a run that was killed, or whose process says nothing about it."""
NO_LINE: Final = "no line"
"""The status of a whole file: that of `trace merge`, or of a run whose line was lost."""

_DATED: Final = re.compile(r"(\d{8}T\d{6}Z)-")
_END: Final = b"]"
_MOST_FACTS: Final = 65_536


def unended_runs(folder: Path, known: Collection[str]) -> list[RunLine]:
    """The runs of a folder that have no line, by the time of their last write.

    Args:
        folder: of the traces.
        known: the traces that have a line.

    Raises:
        OSError: the folder cannot be read.
    """
    found = []
    for path in folder.glob(f"*{SUFFIX}*"):
        if str(path.absolute()) in known or not path.name.endswith((SUFFIX, f"{SUFFIX}.gz")):
            continue
        # One may be removed or packed meanwhile, or be another user's.
        with suppress(OSError):
            state = path.lstat()
            if stat.S_ISREG(state.st_mode):
                found.append((state.st_mtime, _line(path, state)))
    return [line for _, line in sorted(found, key=lambda one: one[0])]


def _line(path: Path, state: os.stat_result) -> RunLine:
    marker = path.with_name(stem_of(path) + OPEN)
    began_s = _began(marker, stem_of(path), state)
    return RunLine(
        run_id=stem_of(path),
        service=_service(marker),
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
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        size = size_without_nuls(descriptor, size)
        return os.pread(descriptor, 8, max(0, size - 8)).rstrip().endswith(_END)
    finally:
        os.close(descriptor)


def _began(marker: Path, stem: str, state: os.stat_result) -> float:
    """When a run began: as its name says, else when it was opened, else when it last wrote."""
    if dated := _DATED.match(stem):
        with suppress(ValueError):
            return datetime.strptime(dated[1] + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
    with suppress(OSError):
        return min(marker.lstat().st_mtime, state.st_mtime)
    return state.st_mtime


def _service(marker: Path) -> str:
    """The program of a run, as far as the file that its processes find it by is still there."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        descriptor = os.open(marker, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            return str(json.loads(file.read(_MOST_FACTS))["service"])
    return ""
