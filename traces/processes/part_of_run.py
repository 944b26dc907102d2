"""What a child of a run has in place of the run's files: a part, which the run takes in."""

from __future__ import annotations

import os
from dataclasses import asdict

from traces.chrome.file import SUFFIX
from traces.processes.part_file import PartFile
from traces.processes.part_lines import VERSION, PartRecorder
from traces.processes.shared_run import SharedRun
from traces.recording.broken_sinks import Problems


class PartOfRun:
    """Writes what a child records to its part. One thread at a time calls it.

    Args:
        shared: the run.
        problems: where failures go; nothing here raises for a broken file.
    """

    def __init__(self, shared: SharedRun, problems: Problems) -> None:
        facts = shared.facts
        self._shared = shared
        self._problems = problems
        self.recorder = PartRecorder(record_content=facts.record_content)
        self.trace = shared.path.with_name(facts.stem + SUFFIX)
        header = {"kind": "part", "version": VERSION, "pid": os.getpid(), **asdict(facts)}
        self._file: PartFile | None = PartFile(self.trace, header)

    @property
    def over(self) -> bool:
        """Whether the run itself has ended."""
        return self._shared.over

    def flush(self) -> None:
        """Write what was gathered, while there is room for it."""
        lines = self.recorder.take()
        if self._file is None or not lines:
            return
        if self._file.written >= self._shared.facts.max_bytes:
            self._give_up(f"the part of process {os.getpid()} has grown too large, and ends")
            return
        try:
            self._file.write(lines)
        except OSError as error:
            self._give_up(f"the part of process {os.getpid()} ends early: {error}")

    def close(self) -> None:
        """Write what is left and leave the file to the run."""
        self.flush()
        if self._file is not None:
            self._file.close()

    def _give_up(self, why: str) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
        self._problems.report("part", why)
