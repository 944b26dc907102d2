"""SQL over a trace in the real Perfetto trace processor, and the queries that tests ask."""

from __future__ import annotations

import atexit
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traces.chrome.sql import SqlError, TraceProcessor
from traces.reading.stored_events import TraceFile

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


class _Perfetto:
    """One process with the trace processor in it; starting it is what costs, so it is kept."""

    def __init__(self) -> None:
        self._processor: TraceProcessor | None = None
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def ask(self, trace: Path, queries: Sequence[str]) -> list[list[Row]]:
        with self._lock:
            if self._processor is None:
                self._processor = TraceProcessor()
            try:
                answers = self._processor.ask(trace, queries)
            except SqlError as error:
                if "ended" in str(error):
                    self._processor = None
                raise
        return [[dict(zip(one.columns, row, strict=True)) for row in one.rows] for one in answers]

    def stop(self) -> None:
        if self._processor is not None:
            self._processor.close()
            self._processor = None


_perfetto = _Perfetto()


def query_many(trace: Path, queries: Sequence[str]) -> list[list[Row]]:
    """The rows of each query, as dicts by column; the trace is loaded once.

    Raises:
        SqlError: Perfetto refused the trace or a query.
    """
    return _perfetto.ask(trace, queries)


def query(trace: Path, sql: str) -> list[Row]:
    """The rows of one query, as dicts by column.

    Raises:
        SqlError: Perfetto refused the trace or the query.
    """
    return query_many(trace, [sql])[0]


NESTING = """
    select child.name from slice child join slice parent on child.parent_id = parent.id
    where child.ts < parent.ts or child.ts + child.dur > parent.ts + parent.dur
"""
"""Slices that reach out of the one they lie in."""

OVERLAPS = """
    select name from (
        select s.name, s.ts, lag(s.ts + s.dur) over (
            partition by s.track_id, s.depth order by s.ts, s.id) as before
        from slice s join thread_track t on s.track_id = t.id)
    where before > ts
"""
"""Slices that begin before the one beside them has ended."""


def assert_sound(trace: Path) -> list[Row]:
    """Check that Perfetto takes a trace as it was written; returns the slices of its lanes.

    No error and no loss; as many slices, arrows and counters as the file has; all nested, all arrows bound.
    """
    queries = [PROBLEMS, SLICES, ASYNC, FLOWS, COUNTERS, NESTING, OVERLAPS]
    problems, slices, asynchronous, flows, counters, nesting, overlaps = query_many(trace, queries)
    assert problems == []
    assert nesting == []
    assert overlaps == []
    events = list(TraceFile(trace).events())
    written = Counter(str(event["ph"]) for event in events)
    values = sum(len(event["args"]) for event in events if event["ph"] == "C")
    found = {
        "X": len(slices),
        "b": len(asynchronous),
        "e": len(asynchronous),
        "s": len(flows),
        "f": len(flows),
    }
    assert found == {phase: written[phase] for phase in found}
    assert len(counters) == values
    names = Counter(str(event["name"]) for event in events if event["ph"] == "X")
    assert names.total() == len(slices)
    return slices
