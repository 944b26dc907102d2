"""The events of a trace's file, one by one, so that a file of gigabytes costs no memory.

keepwarm writes one event a line. A file that was cut (a kill, a full disk) is read up to the cut, and so is
one with NULs in place of its end (a machine that lost its power). Other programs' Chrome Traces are read
whole where they have no more than `LONGEST_LINE` bytes.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from traces.chrome.file import LONGEST_LINE
from traces.place import GZIP_MAGIC, opened_regular

Event = dict[str, Any]
TraceBytes = BufferedReader | gzip.GzipFile
"""An open file, which is unpacked while it is read."""

ALLOWED: Final = "a list of events or an object with `traceEvents`, as JSON, plain or gzip"
"""What a trace's file may be."""

_A_LIST: Final = re.compile(rb"\s*\[\s*\]?\s*\Z")
_JSON: Final = re.compile(rb"\s*[\[{]")
_OF_EVENTS: Final = re.compile(rb'"(ph|traceEvents)"\s*:')
_NOTHING: Final = "has nothing that can be read"
"""As an empty file, and one that is gzip by its first bytes only."""
_QUOTED: Final = 20
"""Bytes of another file that an error quotes."""
_PIECE_BYTES: Final = 1 << 20
_SPACE: Final = b" \t\r\n\0"


class BadTrace(ValueError):
    """A file that is no trace. `line` counts from 1."""

    def __init__(self, file: Path, line: int, why: str) -> None:
        super().__init__(f"{file} is no trace: line {line} {why}.")
        self.file, self.line = file, line


class TraceFile:
    """A trace's file, plain or gzip.

    Attributes:
        cut: the number of the line where the file ends too early; 0 where it is whole. Known, as what
            follows, once all events were read, or the file was looked at.
        nuls: whether NULs follow there.
        behind: how many bytes follow the end of a whole one, which nothing reads; None for some that are
            not gzip, behind a file that is.
        one_line: whether all events are in its first line, as other programs write them.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.cut = 0
        self.nuls = False
        self.behind: int | None = 0
        self.one_line = False

    def events(self) -> Iterator[Event]:
        """Each event, in the order of the file.

        Raises:
            BadTrace: the file is no trace.
            OSError: it cannot be read.
        """
        yield from self._read(_parsed)

    def look(self) -> None:
        """Find out how it ends, for a tenth of what its events cost. Of other forms nothing is known then.

        Raises:
            OSError: it cannot be read.
        """
        with suppress(BadTrace):
            for _ in self._read(_unparsed):
                pass

    def _read(self, parsed: Callable[[bytes], Event | None]) -> Iterator[Event]:
        number, ended = 0, False
        with opened_events(self.file) as lines:
            for number, found_line in enumerate(lines_in(self.file, lines), 1):
                line, nul, more = found_line.partition(b"\0")
                self.nuls = bool(nul)
                text = line.strip().rstrip(b",")
                if text in (b"[", b"") and not nul:
                    continue
                if text.startswith(b"]"):
                    ended = True
                    self.behind = _behind(text[1:] + nul + more, lines)
                    break
                found = parsed(text) if number > 1 else _parsed(text)
                if found is None:
                    if number == 1 and text != b"[":
                        why = "is no event and no list of events" if text else "begins with NULs"
                        raise BadTrace(self.file, number, why)
                    if nul or not line.endswith(b"\n"):
                        break
                    raise BadTrace(self.file, number, "is no event")
                if number == 1 and "ph" not in found:
                    self.one_line = True
                    yield from self._whole(found)
                    self.behind = _behind(nul + more, lines)
                    return
                yield found
                if nul:
                    break
        if not number:
            raise BadTrace(self.file, 1, _NOTHING)
        self.cut = 0 if ended else number

    def _whole(self, document: Event) -> Iterator[Event]:
        events = document.get("traceEvents")
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            raise BadTrace(self.file, 1, "has no list of `traceEvents`")
        yield from events


def check_is_trace(path: Path) -> None:
    """Refuse a file that does not begin as a Chrome Trace, plain or gzip. Only its beginning is read.

    Raises:
        BadTrace: it begins as something else.
        OSError: it cannot be read.
    """
    begin = b""
    # What is damaged has a beginning, too.
    with opened_events(path) as file, suppress(EOFError, zlib.error, gzip.BadGzipFile):
        while len(begin) < _PIECE_BYTES and (piece := file.read1(_PIECE_BYTES)):
            begin += piece
    if not begin.strip():
        raise BadTrace(path, 1, _NOTHING)
    if not _A_LIST.match(begin) and not (_JSON.match(begin) and _OF_EVENTS.search(begin)):
        raise BadTrace(path, 1, f"begins with {begin[:_QUOTED]!r}; allowed: {ALLOWED}")


def opened_events(path: Path) -> TraceBytes:
    """A trace's file, unpacked, to read.

    Raises:
        OSError: it cannot be read.
    """
    file = opened_regular(path)
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    if magic != GZIP_MAGIC:
        return file
    packed = gzip.GzipFile(fileobj=file)
    # What is closed with it.
    packed.myfileobj = file  # type: ignore[assignment]
    return packed


def lines_in(path: Path, file: TraceBytes) -> Iterator[bytes]:
    """The lines of a trace's file up to where it was cut; one with NULs in it is the last.

    Raises:
        BadTrace: a line is longer than any event.
        OSError: it cannot be read.
    """
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(LONGEST_LINE + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return
        nuls = b"\0" in line
        if len(line) > LONGEST_LINE and not nuls:
            raise BadTrace(path, number, f"has more than {LONGEST_LINE:,} bytes")
        if not line:
            return
        yield line
        if nuls:
            return


def _behind(begin: bytes, file: TraceBytes) -> int | None:
    """How many bytes there are, these and all that follow in the file; 0 for nothing but space and NULs."""
    count, blank = len(begin), not begin.strip(_SPACE)
    try:
        while piece := file.read(_PIECE_BYTES):
            count, blank = count + len(piece), blank and not piece.strip(_SPACE)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return 0 if blank else count


def number_of(value: object) -> float | None:
    """A finite number of an event, or None: another program's file may hold anything in its place."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_number)


def _unparsed(text: bytes) -> Event | None:
    """Something in the place of what is an event by its ends; other programs have events of many lines."""
    return {"ph": ""} if text.startswith(b"{") and text.endswith(b"}") else None


def _parsed(text: bytes) -> Event | None:
    """An event, or a whole document; None for anything else."""
    if text.startswith(b"[") and text.endswith(b"]"):
        text = b'{"traceEvents": ' + text + b"}"
    text = text.removeprefix(b"[")
    try:
        found = _DECODER.decode(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
