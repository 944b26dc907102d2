"""The file that a child of a run writes, `NAME.PID.part`, and how it is taken into the trace.

The child locks the file for each batch, and begins another one where the file was removed. What takes
a part in reads it and removes it under the same lock. So neither waits for the other's end, and nothing
that was written is lost, whichever process is killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final

from traces.place import create_numbered, lock, write_all

_PART: Final = re.compile(r"\.\d+(-\d+)?\.part")
_LONGEST: Final = 16 * 1024 * 1024
"""Bytes of the longest line that is read."""
_LOCK_S: Final = 2.0
"""How long a batch of a child, or the reading of one, may keep a file locked before it is left alone."""

Line = dict[str, Any]


class PartFile:
    """A part while its process writes it; made with the first batch.

    Args:
        trace: the run's file.
        header: the first line.
    """

    def __init__(self, trace: Path, header: Line) -> None:
        self._trace = trace
        self._header = header
        self._descriptor: int | None = None
        self.written = 0
        """Bytes of all its files."""

    def write(self, lines: list[str]) -> None:
        """Append lines, each a JSON object.

        Raises:
            OSError: they cannot be written.
        """
        data = "".join(f"{line}\n" for line in lines).encode()
        while True:
            if self._descriptor is None:
                self._descriptor = self._begun()
            with _locked(self._descriptor, self._trace):
                # The run removes what it has taken in.
                if os.fstat(self._descriptor).st_nlink:
                    self._append(self._descriptor, data)
                    return
            self.close()

    def close(self) -> None:
        """Close the file and leave it."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _begun(self) -> int:
        stem = f"{self._header['stem']}.{os.getpid()}"
        descriptor, _ = create_numbered(self._trace.parent, stem, ".part")
        self._append(descriptor, (json.dumps(self._header) + "\n").encode())
        return descriptor

    def _append(self, descriptor: int, data: bytes) -> None:
        self.written += write_all(descriptor, data)


def parts_of(folder: Path, stem: str) -> list[Path]:
    """The parts beside a trace, by name."""
    names = (path for path in folder.glob(f"{_escaped(stem)}.*.part"))
    return sorted(path for path in names if _PART.fullmatch(path.name.removeprefix(stem)))


@contextmanager
def opened_part(path: Path) -> Iterator[IO[bytes]]:
    """A part under its lock.

    Raises:
        OSError: it cannot be read, or a process keeps it locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file, _locked(descriptor, path):
        yield file


def lines_of(file: IO[bytes]) -> Iterator[Line]:
    """The whole lines of a part from its beginning; a line that a kill cut is left out.

    So is one that a crash of the machine filled with NULs, which may be of any length.
    """
    file.seek(0)
    while text := file.readline(_LONGEST):
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                yield line


@contextmanager
def _locked(descriptor: int, path: Path) -> Iterator[None]:
    lock(descriptor, path, _LOCK_S)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


def _escaped(stem: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", stem)
