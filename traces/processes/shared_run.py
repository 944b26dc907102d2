"""How the processes of one run find it: a file beside the trace, and a variable that names that file.

The file is there as long as the run, and locked by the process that opened the run. A child that finds it
gone, or not locked, knows that the run is over.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from traces.chrome.file import stem_of

VARIABLE: Final = "KEEPWARM_TRACE_RUN"
"""The environment variable that names the file; children inherit it."""
SUFFIX: Final = ".open"
_MOST_BYTES: Final = 65_536
_NUMBER: Final = re.compile(r"-\d+\Z")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a child has to know of a run to take part. `base_ns` is the epoch time that is 0 in the file."""

    run_id: str
    service: str
    stem: str
    root_id: int
    offset_ns: int
    base_ns: int
    sample: float
    record_content: bool
    max_bytes: int


class SharedRun:
    """A run that is open for the children of this process, from `share` to `end`."""

    def __init__(self, path: Path, facts: RunFacts, descriptor: int | None) -> None:
        self.path = path
        self.facts = facts
        self._descriptor = descriptor

    @property
    def over(self) -> bool:
        """Whether the process that opened the run has ended it, or is gone."""
        return not is_open(self.path)

    def forked(self) -> None:
        """In a forked child: the parent's lock is not the child's to hold."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def end(self) -> None:
        """Say that the run is over. Only in the process that opened it."""
        _CHILDREN_FIND.leave(self.path)
        self.path.unlink(missing_ok=True)
        self.forked()


# A named pipe in place of the file holds no program up.
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class _NamedRuns:
    """The runs that are open here. The variable names the last of them, or what it named before all."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._outer: str | None = None

    def add(self, path: Path) -> None:
        """Have children that are started from now on find a run."""
        if not self._paths:
            self._outer = os.environ.get(VARIABLE)
        self._paths.append(path)
        os.environ[VARIABLE] = str(path)

    def leave(self, path: Path) -> None:
        """Have none find it any more; runs of several threads end in any order."""
        if path in self._paths:
            self._paths.remove(path)
            named = str(self._paths[-1]) if self._paths else self._outer
            if named is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = named


_CHILDREN_FIND: Final = _NamedRuns()


def share(trace: Path, facts: RunFacts) -> SharedRun:
    """Open a run for children.

    Args:
        trace: its file.
        facts: what they have to know.

    Raises:
        OSError: the file beside the trace cannot be made.
    """
    path = marker_of(trace)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    # Where a file system has no locks, the file alone says that the run is open.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(descriptor, json.dumps(asdict(facts)).encode())
    _CHILDREN_FIND.add(path)
    return SharedRun(path, facts, descriptor)


def marker_of(trace: Path) -> Path:
    """The file beside a trace by which other processes find its run."""
    return trace.with_name(stem_of(trace) + SUFFIX)


def marker_of_run(trace: Path) -> Path:
    """The marker of the run that a trace is a file of; further files are numbered, the marker is not."""
    own = marker_of(trace)
    first = own.with_stem(_NUMBER.sub("", own.stem))
    return first if first.exists() and not own.exists() else own


def facts_in(marker: Path) -> RunFacts | None:
    """What a run says of itself in the file that it is found by; None without one that can be read."""
    try:
        with os.fdopen(os.open(marker, _READ), "rb") as file:
            return RunFacts(**json.loads(file.read(_MOST_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def named_run() -> SharedRun | None:
    """The run that the environment names, while it is open; None where there is none."""
    named = os.environ.get(VARIABLE)
    if not named or not is_open(path := Path(named)):
        return None
    facts = facts_in(path)
    return None if facts is None else SharedRun(path, facts, None)


def is_open(path: Path) -> bool:
    """Whether the process that made the file still holds it."""
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it is locked, or its file system has no locks
        return True
    else:
        return False
    finally:
        os.close(descriptor)
