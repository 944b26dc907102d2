"""The keeper's log: bounded in bytes, and in the number of lines from any one place in the code."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.foreign.shown_text import one_line
from backends.machine.files.unwritten import UNWRITTEN
from shim.paths import STDERR_BYTES

LOG_BYTES: Final = 4 * 1024 * 1024
REPEATED_S: Final = 10.0
"""A line equal to the one before it, from the same place, is only counted for so many seconds."""
LINES_PER_S: Final = 50.0
BURST: Final = 500

_LOOK_EVERY_S: Final = 5.0


@dataclass(slots=True)
class _Place:
    """The log lines of one place in the code. Times are monotonic seconds."""

    text: str
    said_at: float
    refilled_at: float
    tokens: float = BURST
    repeated: int = 0
    left_out: int = 0


class LogBounds:
    """Collapses identical lines into one and a count, and bounds all others.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places: dict[tuple[str, int], _Place] = {}

    def lines(self, record: logging.LogRecord) -> Iterator[logging.LogRecord]:
        """The records to write for one: earlier counts and itself, or none if it is only counted."""
        now, text = self._clock(), record.getMessage()
        key = record.pathname, record.lineno
        place = self._places.get(key)
        if place is None:
            self._places[key] = _Place(text, now, now)
            yield record
            return
        if text == place.text and now - place.said_at < REPEATED_S:
            place.repeated += 1
            return
        place.tokens = min(BURST, place.tokens + (now - place.refilled_at) * LINES_PER_S)
        place.refilled_at = now
        if place.tokens < 1:
            place.left_out += 1
            return
        yield from _counted(place, record)
        place.text, place.said_at, place.tokens = text, now, place.tokens - 1
        yield record

    def overdue(self) -> Iterator[logging.LogRecord]:
        """Records with the counts that have not been written for a while."""
        now = self._clock()
        for (file, line), place in self._places.items():
            if (place.repeated or place.left_out) and now - place.said_at >= REPEATED_S:
                about = logging.LogRecord("keepwarm", logging.WARNING, file, line, "", (), None)
                place.said_at = now
                yield from _counted(place, about)


def _counted(place: _Place, like: logging.LogRecord) -> Iterator[logging.LogRecord]:
    for count, what in ((place.repeated, "once more"), (place.left_out, "and others like it")):
        if count:
            text = f"{count} times {what}: {place.text}"
            yield logging.LogRecord(
                like.name, like.levelno, like.pathname, like.lineno, text, (), None
            )
    place.repeated = place.left_out = 0


class BoundedHandler(logging.handlers.RotatingFileHandler):
    """A log file that rotates at a few megabytes; see `LogBounds` for its lines."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1)
        self._bounds = LogBounds()
        self._folder = path.parent
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the records that the bounds let through."""
        for line in self._bounds.lines(record):
            self._write(line)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging calls it
        """Count a failed write for `keepwarm ps`. A traceback would go to the same full disk."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._failed = True
            UNWRITTEN.failed(self._folder, error)
        else:
            super().handleError(record)

    def write_counts(self) -> None:
        """Write the pending counts, and the records that a full disk did not take."""
        self.acquire()
        try:
            for line in self._bounds.overdue():
                self._write(line)
            if self._failed:
                with contextlib.suppress(OSError), UNWRITTEN.noting(self._folder):
                    self.flush()
                    self._failed = False
        finally:
            self.release()

    def _write(self, line: logging.LogRecord) -> None:
        self._failed = False
        super().emit(line)
        if not self._failed:
            UNWRITTEN.worked(self._folder)


class LogFormat(logging.Formatter):
    """A record as a line; what it quotes follows, indented, so that it passes for no record."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(message)s", "%F %T")

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return "\n    ".join(map(one_line, super().format(record).split("\n")))


class KeeperLog:
    """The log of a background keeper, and its stderr."""

    PERIOD_S: Final = _LOOK_EVERY_S

    def __init__(self, path: Path) -> None:
        self._handler = BoundedHandler(path)
        self._handler.setFormatter(LogFormat())
        logging.getLogger("keepwarm").setLevel(logging.INFO)
        # Warnings of libraries are bounded, too: asyncio repeats one for a failing socket, for example.
        logging.getLogger().addHandler(self._handler)

    async def tidy(self) -> None:
        """Write the pending counts, and keep stderr within its bound."""
        self._handler.write_counts()
        bound_stream(2, STDERR_BYTES)


def bound_stream(fd: int, limit_bytes: int) -> None:
    """Empty the file that a descriptor appends to, once it is larger than the limit."""
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_size > limit_bytes:
        os.ftruncate(fd, 0)
