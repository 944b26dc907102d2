"""The parts of a run's other processes, recorded again by the run itself."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

from traces import names
from traces.processes.part_file import Line, lines_of, opened_part, parts_of
from traces.processes.part_lines import Recording, header_of, record_line
from traces.recording.held_bytes import held_bytes

MOST_OWN_GROUPS: Final = 64
"""Processes that get a group of lanes each; all further ones share one."""
_AT_ONCE: Final = 128
"""Parts that are open at a time."""
_MOST_AT_END: Final = 65_536
_MOST_AT_END_BYTES: Final = 64 * 1024 * 1024
"""Records of the keeper's histories that wait for the end. More of them are recorded as they come."""


class TakenIn:
    """Takes parts in while their processes may still write them. One thread at a time calls it.

    Args:
        trace: the run's first file, beside which the parts are.
        stem: its name.
        report: called with what is broken and how.
    """

    def __init__(self, trace: Path, stem: str, report: Callable[[str, str], None]) -> None:
        self._folder, self._stem = trace.parent, stem
        self._report = report
        self._titles: dict[int, str] = {}
        self._at_end: list[tuple[Line, str]] = []
        self._at_end_bytes = 0

    @property
    def processes(self) -> set[str]:
        """What the processes are called on the trace."""
        return set(self._titles.values())

    def take(
        self,
        recording: Recording,
        opened: Callable[[Hashable, int], None],
        *,
        last: bool,
        written: Callable[[], None] | None = None,
    ) -> int:
        """Record what there is, in the order in which it ended; returns how many parts were taken in.

        Args:
            recording: takes the records.
            opened: told of a thread or a task that opened a span.
            written: called when all is recorded, and before the parts are removed.
            last: whether the run ends: the histories of the keeper are recorded then, behind all
                requests, which know best what they waited for.
        """
        paths, taken = parts_of(self._folder, self._stem), 0
        for begin in range(0, len(paths), _AT_ONCE):
            ending = last and begin + _AT_ONCE >= len(paths)
            with ExitStack() as held:
                streams = {
                    path: stream
                    for path in paths[begin : begin + _AT_ONCE]
                    if (stream := self._opened(held, path)) is not None
                }
                for line, process in heapq.merge(*streams.values(), key=lambda one: one[0]["at"]):
                    if not self._waits_for_end(line, process):
                        self._record(line, process, recording, opened)
                if ending:
                    self._record_ends(recording, opened)
                    if written is not None:
                        written()
                for path in streams:
                    path.unlink(missing_ok=True)
                taken += len(streams)
        if last:
            self._record_ends(recording, opened)
        return taken

    def _waits_for_end(self, line: Line, process: str) -> bool:
        if not line.get("at_end") or len(self._at_end) >= _MOST_AT_END:
            return False
        n_bytes = held_bytes(line)
        if self._at_end_bytes + n_bytes > _MOST_AT_END_BYTES:
            return False
        self._at_end.append((line, process))
        self._at_end_bytes += n_bytes
        return True

    def _record_ends(self, recording: Recording, opened: Callable[[Hashable, int], None]) -> None:
        waiting, self._at_end, self._at_end_bytes = self._at_end, [], 0
        for line, process in waiting:
            self._record(line, process, recording, opened)

    def _record(
        self,
        line: Line,
        process: str,
        recording: Recording,
        opened: Callable[[Hashable, int], None],
    ) -> None:
        try:
            record_line(line, process, recording, opened)
        except Exception as error:
            self._report("part", f"a record of {process}: {type(error).__name__}: {error}")

    def _opened(self, held: ExitStack, path: Path) -> Iterator[tuple[Line, str]] | None:
        """The lines of a part, which is locked until what holds it is left."""
        try:
            file = held.enter_context(opened_part(path))
            process = self._title(header_of(file))
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._report("part", f"{path.name} is left as it is: {type(error).__name__}: {error}")
            return None
        return _told(file, process)

    def _title(self, header: dict[str, Any]) -> str:
        pid, service = int(header["pid"]), str(header["service"])
        title = self._titles.get(pid)
        if title is None:
            own = len(self._titles) < MOST_OWN_GROUPS
            title = names.process_lanes(service, pid if own else None)
            self._titles[pid] = title
        return title


def _told(file: IO[bytes], process: str) -> Iterator[tuple[Line, str]]:
    for line in lines_of(file):
        if isinstance(line.get("at"), int):
            yield line, process
