"""The progress of a load, from the kernel's counters of the process."""

from __future__ import annotations

from backends.machine.processes import IoCounts


class LoadProgress:
    """Fraction loaded, and whether the load still moves.

    A load moves when it has read more bytes, logged a line, or holds more memory than ever before, up to
    its booking. Memory beyond that is no progress, because an endless chat template also takes some.

    Args:
        file_bytes: the bytes of all files.
        booked_bytes: the host's bytes that are booked.
        now_s: the time of the begin.
    """

    def __init__(self, file_bytes: int, booked_bytes: int, now_s: float) -> None:
        self._file_bytes = max(1, file_bytes)
        self._whole = file_bytes + booked_bytes
        self._read = 0
        self._lines = 0
        self._most = 0
        self._moved_s = now_s
        self._cpu: tuple[float, float] | None = None
        self.fraction = 0.0

    def look(self, counts: IoCounts, lines_seen: int, now_s: float) -> None:
        """Record the counters of now."""
        held = min(counts.rss_bytes, self._whole)
        if held > self._most or counts.rchar > self._read or lines_seen > self._lines:
            self._read, self._lines, self._moved_s = counts.rchar, lines_seen, now_s
            self._most = max(self._most, held)
        loaded = max(counts.rchar, counts.rss_bytes) / self._file_bytes
        self.fraction = max(self.fraction, min(loaded, 0.99))

    def stalled_for_s(self, now_s: float) -> float:
        """Seconds since the load last moved."""
        return now_s - self._moved_s

    def used_cpu(self, cpu_s: float, now_s: float, within_s: float) -> bool:
        """Whether the process has computed lately: its CPU seconds grew within so many seconds."""
        before = self._cpu
        if before is None or cpu_s > before[0]:
            self._cpu = cpu_s, now_s
            return True
        return now_s - before[1] <= within_s
