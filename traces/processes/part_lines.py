"""What a child of a run records, as lines of its part, and these lines recorded again by the run.

A line is a record and not an event of the trace: only the run that takes it in knows which lanes are free,
and which loads it has already.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import IO, Any, Final, NamedTuple, Protocol

from traces import names
from traces.processes.part_file import Line, lines_of
from traces.records import (
    CounterSample,
    EvictSpan,
    Incident,
    LoadSpan,
    OwnSpan,
    Record,
    RequestRecord,
)
from traces.text import Value, clean_attributes

VERSION: Final = 2
_KINDS: Final[Mapping[str, type[Record]]] = {
    "load": LoadSpan,
    "evict": EvictSpan,
    "incident": Incident,
    "counter": CounterSample,
    "request": RequestRecord,
    "own": OwnSpan,
}
_KIND_OF: Final = {made: kind for kind, made in _KINDS.items()}


class Recording(Protocol):
    """What takes records: the recorder of a run, or what writes them for it in a child."""

    def record(self, record: Record, parent: int) -> None:
        """Record what happened to a request, a model or a device."""
        ...

    def records(self, build: Callable[[], Iterable[Record]], parent: int, root: int) -> None:
        """Record what `build` returns: requests under `parent`, all else under `root`."""
        for record in build():
            self.record(record, parent if isinstance(record, RequestRecord) else root)


class PartOwner(NamedTuple):
    """The thread or task of another process that opened a span; `key` is empty where none did."""

    process: str
    key: str


class PartRecorder(Recording):
    """Makes lines of records, in a child of the run. One thread at a time calls it.

    Args:
        record_content: whether prompts and answers are kept.
    """

    def __init__(self, *, record_content: bool) -> None:
        self._record_content = record_content
        self._lines: list[str] = []
        self._at_end = False

    def take(self) -> list[str]:
        """The lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def ends(self) -> None:
        """What comes now is the keeper's history, which a run takes in last."""
        self._at_end = True

    def opened(self, owner: Hashable, epoch_ns: int) -> None:
        """A thread or a task opened a span."""
        self._line("opened", epoch_ns, 0, {"owner": _key(owner)})

    def record(self, record: Record, parent: int) -> None:
        """Write what happened as a line."""
        kind = _KIND_OF[type(record)]
        if isinstance(record, CounterSample):
            self._line(kind, record.ns, parent, asdict(record))
            return
        changed: dict[str, Any] = {"attributes": self._kept(record.attributes)}
        if isinstance(record, RequestRecord) and not self._record_content:
            changed |= {"prompt": None, "answer": None}
        if isinstance(record, OwnSpan):
            changed["owner"] = "" if record.owner is None else _key(record.owner)
            fields = {**record._asdict(), **changed}
        else:
            fields = asdict(replace(record, **changed))
        self._line(kind, record.end_ns, parent, fields)

    def _line(self, kind: str, at_ns: int, parent: int, fields: Mapping[str, Any]) -> None:
        line = {"kind": kind, "at": at_ns, "parent": parent, "fields": fields}
        if self._at_end:
            line["at_end"] = True
        self._lines.append(json.dumps(line, ensure_ascii=True))

    def _kept(self, attributes: Mapping[str, Any]) -> dict[str, Value]:
        kept = clean_attributes(attributes)
        if not self._record_content:
            kept = {key: value for key, value in kept.items() if key not in names.CONTENT}
        return kept


def header_of(file: IO[bytes]) -> Line:
    """The first line of a part.

    Raises:
        ValueError: it begins as none that can be read here.
    """
    header = next(lines_of(file), {})
    if header.get("version") != VERSION:
        raise ValueError(f"it does not begin as a part of version {VERSION}")
    return header


def record_line(
    line: Line,
    process: str,
    recording: Recording,
    opened: Callable[[Hashable, int], None],
) -> None:
    """Record a line of a part.

    Args:
        line: as `PartRecorder` wrote it.
        process: what the process of the part is called on the trace.
        recording: takes it.
        opened: told of a thread or task that opened a span.

    Raises:
        KeyError, TypeError, ValueError: the line is damaged.
    """
    fields, parent = line["fields"], int(line["parent"])
    match line["kind"]:
        case "opened":
            opened(PartOwner(process, str(fields["owner"])), int(line["at"]))
        case "own":
            owner = PartOwner(process, str(fields["owner"]))
            recording.record(OwnSpan(**{**fields, "owner": owner}), parent)
        case kind if kind in _KINDS:
            recording.record(_KINDS[kind](**fields), parent)
        case kind:
            raise ValueError(f"a line of an unknown kind, {kind!r}")


def _key(owner: Hashable) -> str:
    # A span keeps what opened it until its end, so that no other object has that number meanwhile.
    kind = "thread" if isinstance(owner, int) else "task"
    return f"{os.getpid()} {kind} {owner if isinstance(owner, int) else id(owner)}"
