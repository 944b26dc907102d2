"""The file of a trace while it is written: whole events only, so that it opens even after a kill."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from traces.place import create_numbered, write_all
from traces.recording.broken_sinks import Problems

SUFFIX = ".trace.json"
LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes of the longest event: what reads a trace takes no longer one, and is spared one."""
_MAY_BE_TOO_LONG: Final = LONGEST_LINE // 4 - 1
_PACKED_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


class EventFile:
    """A list of events that grows event by event. What fails once fails at every later write, too.

    The file is an array without its closing bracket until `end`; Perfetto opens it in that state too.

    Args:
        descriptor: of the file; writes go to its end.
        written: the bytes of events that are in it already.
    """

    def __init__(self, descriptor: int, written: int = 0) -> None:
        self.descriptor = descriptor
        self.written = written
        """Bytes of the file."""
        self._failure: OSError | None = None

    def write(self, events: list[str]) -> None:
        """Append events, each a JSON object.

        Raises:
            OSError: they cannot be written, or earlier ones could not.
        """
        if events:
            self._write((",\n" if self.written else "[\n") + ",\n".join(events))

    def end(self) -> None:
        """End the list.

        Raises:
            OSError: as `write`.
        """
        self._write("\n]\n" if self.written else "[\n]\n")

    def _write(self, text: str) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self.written += write_all(self.descriptor, text.encode())
        except OSError as error:
            self._failure = error
            raise


class EventSink:
    """The file of a trace, readable by its owner only. Its first failure is reported, and the rest dropped.

    Args:
        directory: where the file goes; made (0700) when it is not there.
        stem: the file's name without its suffix; a number is added when it is taken.
        problems: where failures go, and how many events were left out.
    """

    def __init__(self, directory: Path, stem: str, problems: Problems) -> None:
        self.path: Path | None = None
        self.written = 0
        """Bytes of the file so far."""
        self._problems = problems
        self._file: EventFile | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, self.path = create_numbered(directory, stem, SUFFIX)
            self._file = EventFile(descriptor)
        except OSError as error:
            problems.report("trace file", f"cannot be made: {error}")

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
            os.close(self._file.descriptor)
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
        if file is None or self.path is None:
            return
        try:
            file.end()
            removed = os.fstat(file.descriptor).st_nlink == 0
        finally:
            os.close(file.descriptor)
        if removed:
            raise FileNotFoundError(errno.ENOENT, "it was removed during the run", str(self.path))
        if compress:
            self.path = compressed(self.path)


def trace_files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The traces of a folder, each with its state; links are none. One may be removed or packed meanwhile.

    Raises:
        OSError: the folder cannot be read.
    """
    for path in folder.glob(f"*{SUFFIX}*"):
        if path.name.endswith((SUFFIX, f"{SUFFIX}.gz")):
            with suppress(FileNotFoundError):
                state = path.lstat()
                if stat.S_ISREG(state.st_mode):
                    yield path, state


def stem_of(path: Path) -> str:
    """The name of a trace's file without its suffixes: the run that it is of."""
    return path.name.removesuffix(".gz").removesuffix(SUFFIX)


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
