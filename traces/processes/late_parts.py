"""Parts that nothing took in: their run's own process was killed, or they were written after its end.

They are added to the run's first file, in groups of their own behind those that are there.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from traces import names
from traces.chrome.file import LONGEST_LINE, EventFile, compressed, stem_of
from traces.chrome.view import ChromeView
from traces.place import lock, size_without_nuls
from traces.processes.part_file import Line, opened_part, parts_of
from traces.processes.part_lines import header_of
from traces.processes.shared_run import is_open, marker_of
from traces.processes.taking_in import TakenIn
from traces.reading.stored_events import BadTrace, TraceFile
from traces.recording.recorder import Recorder
from traces.records import CounterSample, RequestRecord
from traces.span_data import SpanData

_LOCK_S: Final = 5.0


@dataclass(slots=True)
class _There:
    """What a trace has already: the highest numbers of groups and arrows, and its loads and evictions."""

    groups: int = 0
    arrows: int = 0
    stays: set[tuple[str, str, str]] = field(default_factory=set)


@dataclass(slots=True)
class _LateSink:
    """Puts spans and samples on a view; the run's line is written already."""

    view: ChromeView
    last_ns: int = 0

    def span(self, span: SpanData) -> None:
        """Take a finished span."""
        self.view.add(span)
        self.last_ns = max(self.last_ns, span.end_ns)

    def counter(self, sample: CounterSample, epoch_ns: int) -> None:
        """Take a sample of a device's books."""
        self.view.counter(sample, epoch_ns)

    def request(self, record: RequestRecord) -> None:
        """Take a request for the run's line."""


def late_parts(trace: Path) -> list[Path]:
    """The parts beside a trace that no run takes in any more: its own process has ended, or was killed."""
    return [] if is_open(marker_of(trace)) else parts_of(trace.parent, stem_of(trace))


def add_late_parts(trace: Path) -> tuple[int, list[str]]:
    """Add the late parts of a trace to its file; returns how many were, and what is wrong with others.

    Raises:
        BadTrace: the file is no trace.
        ValueError: it has all its events in one line, or no part begins as one.
        OSError: it cannot be read or written. Then the file and the parts are as they were.
    """
    parts = late_parts(trace)
    if not parts:
        return 0, []
    there = _there(trace)
    packed = trace.name.endswith(".gz")
    plain = trace.with_name(trace.name.removesuffix(".gz")) if packed else trace
    try:
        if packed:
            with gzip.open(trace) as source, plain.open("xb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        added = _append(plain, parts, there)
    except BaseException:
        if packed:
            plain.unlink(missing_ok=True)
        raise
    if packed:
        compressed(plain)
    marker_of(trace).unlink(missing_ok=True)
    return added


def _append(trace: Path, parts: list[Path], there: _There) -> tuple[int, list[str]]:
    descriptor = os.open(trace, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "r+b", buffering=0):
        lock(descriptor, trace, _LOCK_S)
        cut = _cut_end(descriptor)
        try:
            return _record_late(trace, parts, there, EventFile(descriptor, cut))
        except BaseException:
            os.ftruncate(descriptor, cut)
            EventFile(descriptor, cut).end()
            raise


def _record_late(
    trace: Path, parts: list[Path], there: _There, out: EventFile
) -> tuple[int, list[str]]:
    """Write the parts as events that follow those of the trace; returns as `add_late_parts` does."""
    header, problems = _header(parts), list[str]()
    sink = _LateSink(
        ChromeView(
            out.write,
            base_ns=int(header["base_ns"]),
            home=names.process_lanes(str(header["service"]), None),
            after=(there.groups, there.arrows),
        )
    )
    recorder = Recorder(
        sink,
        itertools.count(1).__next__,
        offset_ns=int(header["offset_ns"]),
        record_content=bool(header["record_content"]),
    )
    for stay in there.stays:
        recorder.knows(*stay)

    def written() -> None:
        sink.view.finish(sink.last_ns)
        sink.view.flush()
        out.end()

    taken = TakenIn(trace, stem_of(trace), lambda _what, why: problems.append(why))
    count = taken.take(recorder, sink.view.lease_lane, last=True, written=written)
    return count, problems


def _header(parts: list[Path]) -> Line:
    """The first line of the first part that has one; all are of one run."""
    for part in parts:
        with suppress(ValueError), opened_part(part) as file:
            return header_of(file)
    raise ValueError("none begins as one that this version of keepwarm wrote; they may be removed")


def _there(trace: Path) -> _There:
    found = _There()
    if not trace.stat().st_size:
        return found
    file = TraceFile(trace)
    for event in file.events():
        if isinstance(event.get("pid"), int):
            found.groups = max(found.groups, event["pid"])
        if event.get("ph") in ("s", "f") and isinstance(event.get("id"), int):
            found.arrows = max(found.arrows, event["id"])
        args, kind = event.get("args"), event.get("cat")
        if event.get("ph") == "X" and kind in (names.MODEL_LOAD, names.EVICT) and args:
            known = names.EVICT_ID if kind == names.EVICT else names.LOAD_ID
            found.stays.add((kind, str(args.get(known)), str(args.get(names.DEVICE))))
    if file.behind != 0:
        raise BadTrace(trace, 1, "begins a list of events that ends before the file does")
    if file.one_line:
        raise ValueError("its events are in one line, as another program wrote them")
    return found


def _cut_end(descriptor: int) -> int:
    """Cut the end of the list of events, or an event that a kill cut; returns the bytes that are left."""
    size = os.fstat(descriptor).st_size
    size = size_without_nuls(descriptor, size)
    begin = max(0, size - LONGEST_LINE)
    tail = os.pread(descriptor, size - begin, begin).rstrip(b", \t\r\n")
    if tail.endswith(b"\n]"):
        tail = tail[:-2]
    elif not _is_event(tail[(last := tail.rfind(b"\n") + 1) :]):
        tail = tail[:last].rstrip(b",\n")
    left = begin + len(tail)
    # Without an event the list begins anew.
    left = 0 if left <= len(b"[") else left
    os.ftruncate(descriptor, left)
    return left


def _is_event(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
