"""The log of an engine: a bounded ring of lines."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

RING_LINES = 400
_IDLE = b"all slots are idle"
TAIL_LINES = 25
_LINE_CHARS = 500
_LINE_BYTES = 4 * _LINE_CHARS
_READY = re.compile(
    rb"model loaded|server is listening|all slots are idle|application startup complete",
    re.IGNORECASE,
)
_LOAD_MARKS: Final = {
    "header": b"llama_model_loader",
    "weights": b"load_tensors",
    "buffers": b"llama_context",
}
"""What a llama.cpp of any age writes first in each phase of a load."""
_OUT_OF_MEMORY = re.compile(
    r"unable to allocate .*buffer|failed to allocate .*(buffer|memory)|out of memory"
    r"|cudaMalloc failed|std::bad_alloc|cannot allocate memory|ErrorOutOfDeviceMemory",
    re.IGNORECASE,
)
_SECRET = re.compile(r"(?i)(bearer\s+|api[-_ ]?key[\"'=:\s]+|\bsk-|\bhf_)[\w.\-]{6,}")


def looks_out_of_memory(lines: Iterable[str]) -> bool:
    """Whether an engine's last lines say that a device refused bytes."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)


class LogRing:
    """The last lines of one engine, and all its buffer lines.

    An engine writes a dozen lines for each request and hardly ever is one read, so that lines are kept as
    they were written; secrets are masked when they are read. `on_ready` is called at the first line that
    says the model is loaded; `lines_seen` only grows.
    """

    def __init__(self, on_ready: Callable[[], None] | None = None) -> None:
        self._lines: deque[bytes] = deque(maxlen=RING_LINES)
        self._buffer_lines: list[bytes] = []
        self._on_ready = on_ready
        self._begun = b""
        """The beginning of a line that is not whole yet."""
        self.lines_seen = 0
        self._lines_kept = 0
        self.said_ready = False
        self.marks: dict[str, int] = {}
        """When each phase of the load was first heard of, in monotonic nanoseconds."""

    def feed(self, chunk: bytes) -> None:
        """Take bytes as the process wrote them; a line counts once it is whole."""
        first, *rest = chunk.split(b"\n")
        self._begun = (self._begun + first)[:_LINE_BYTES]
        for following in rest:
            self.add(self._begun)
            self._begun = following[:_LINE_BYTES]

    def add(self, raw: bytes) -> None:
        """Take one line; a long one is cut."""
        line = raw[:_LINE_BYTES].rstrip()
        if not line:
            return
        self.lines_seen += 1
        # One follows every question for its slots; what matters would be pushed out.
        if not (_IDLE in line and self._lines and _IDLE in self._lines[-1]):
            self._lines.append(line)
            self._lines_kept += 1
        if b"buffer size" in line and len(self._buffer_lines) < RING_LINES:
            self._buffer_lines.append(line)
        if self.said_ready:
            return
        for phase, mark in _LOAD_MARKS.items():
            if phase not in self.marks and mark in line:
                self.marks[phase] = time.monotonic_ns()
        if _READY.search(line):
            self.said_ready = True
            if self._on_ready is not None:
                self._on_ready()

    @property
    def lines(self) -> tuple[str, ...]:
        """The kept lines, oldest first."""
        return tuple(map(_readable, self._lines))

    def since(self, seen: int) -> tuple[int, tuple[str, ...]]:
        """How many lines were ever kept, and those after the first `seen` that still are."""
        new = min(max(0, self._lines_kept - seen), len(self._lines))
        return self._lines_kept, tuple(map(_readable, list(self._lines)[len(self._lines) - new :]))

    @property
    def tail(self) -> tuple[str, ...]:
        """The last lines, as quoted in errors."""
        return tuple(map(_readable, list(self._lines)[-TAIL_LINES:]))

    @property
    def buffer_lines(self) -> tuple[str, ...]:
        """The lines about buffers that llama-server has written so far."""
        return tuple(map(_readable, self._buffer_lines))


def _readable(raw: bytes) -> str:
    line = raw.decode("utf-8", "replace").rstrip()[:_LINE_CHARS]
    return _SECRET.sub(r"\1***", line)
