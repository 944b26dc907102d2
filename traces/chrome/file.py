"""The file of a trace while it is written: whole events only, so that it opens even after a kill."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
from pathlib import Path
from typing import Final

from traces.recording.broken_sinks import Problems

SUFFIX = ".trace.json"
LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes of the longest event: what reads a trace takes no longer one, and is spared one."""
_MAY_BE_TOO_LONG: Final = LONGEST_LINE // 4 - 1
_PACKED_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class EventFile:
    """A Chrome Trace file that grows event by event.

    The file is an array without its closing bracket until `close`; Perfetto opens it in that state too.
    It is readable by its owner only.

    Args:
        directory: where the file goes; made (0700) when it is not there.
        stem: the file's name without its suffix; a number is added when it is taken.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, directory: Path, stem: str) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._descriptor, self.path = _create(directory, stem)
        self._separator = "[\n"
        self.written = 0
        """Bytes of the file."""

    def write(self, events: list[str]) -> None:
        """Append events, each a JSON object, with one system call (more when the disk takes less)."""
        if not events:
            return
        data = (self._separator + ",\n".join(events)).encode()
        self._separator = ",\n"
        self._write_all(data)

    def close(self, *, compress: bool) -> Path:
        """Finish the array; with `compress`, replace the file by its gzip form. Returns its path."""
        try:
            self._write_all(b"[\n]\n" if self._separator == "[\n" else b"\n]\n")
            removed = os.fstat(self._descriptor).st_nlink == 0
        finally:
            os.close(self._descriptor)
        if removed:
            raise FileNotFoundError(errno.ENOENT, "it was removed during the run", str(self.path))
        if compress:
            self.path = compressed(self.path)
        return self.path

    def abandon(self) -> None:
        """Close the descriptor and leave the file as it is."""
        os.close(self._descriptor)

    def _write_all(self, data: bytes) -> None:
        while data:
            count = os.write(self._descriptor, data)
            self.written += count
            data = data[count:]


class EventSink:
    """An `EventFile` that never raises: its first failure is reported, and the rest is dropped.

    Args:
        directory, stem: as `EventFile`.
        problems: where failures go, and how many events were left out.
    """

    def __init__(self, directory: Path, stem: str, problems: Problems) -> None:
        self.path: Path | None = None
        self.written = 0
        """Bytes of the file so far."""
        self._problems = problems
        self._file: EventFile | None = None
        try:
            self._file = EventFile(directory, stem)
        except OSError as error:
            problems.report("trace file", f"cannot be made: {error}")
        else:
            self.path = self._file.path

    def write(self, events: list[str]) -> None:
        """Append events while the file lasts."""
        if self._file is None:
            return
        if any(len(event) > _MAY_BE_TOO_LONG for event in events):
            events = self._short_enough(events)
        try:
            self._file.write(events)
            self.written = self._file.written
        except OSError as error:
            self._file.abandon()
            self._file = None
            self._problems.report("trace file", f"{self.path} ends early: {error}")

    def _short_enough(self, events: list[str]) -> list[str]:
        kept = [event for event in events if len(event.encode()) + len(",\n") <= LONGEST_LINE]
        told = f"of more than {LONGEST_LINE:,} bytes were left out"
        self._problems.count("events", len(events) - len(kept), told)
        return kept

    def close(self, *, compress: bool) -> None:
        """Finish the file; `path` is where it is in the end.

        Raises:
            OSError: it cannot be finished or compressed.
        """
        file, self._file = self._file, None
        if file is not None:
            self.path = file.close(compress=compress)


def stem_of(path: Path) -> str:
    """The name of a trace's file without its suffixes: the run that it is of."""
    return path.name.removesuffix(".gz").removesuffix(SUFFIX)


def _create(directory: Path, stem: str) -> tuple[int, Path]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    flags |= os.O_NOFOLLOW
    number = 1
    while True:
        path = directory / f"{stem}{'' if number == 1 else f'-{number}'}{SUFFIX}"
        try:
            if not path.with_name(path.name + ".gz").exists():
                return os.open(path, flags, 0o600), path
        except FileExistsError:
            pass
        number += 1


def compressed(path: Path) -> Path:
    """Replace a file by its gzip form; returns that one's path."""
    target = path.with_name(path.name + ".gz")
    part = path.with_name(path.name + ".gz.part")
    descriptor = os.open(part, _PACKED_FLAGS, 0o600)
    try:
        with (
            os.fdopen(descriptor, "wb") as raw,
            path.open("rb") as source,
            gzip.GzipFile(path.name, "wb", 6, raw) as packed,
        ):
            shutil.copyfileobj(source, packed, 1 << 20)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    path.unlink()
    return target
