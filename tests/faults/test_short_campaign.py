"""The fault campaign of `bench/faults.py` in a short form: real engines, random moments, one seed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.perfetto import PROBLEMS, SLICES, assert_sound, query_many
from traces import RunLine, names, read_runs
from traces.reading.stored_events import TraceFile

ROOT = Path(__file__).resolve().parents[2]
FAULTS = 5
LIMIT_S = 100.0
MUST_BE_ZERO = ("untyped", "hung", "lost", "ghost_leases", "orphans", "leaks")


@pytest.mark.real
def test_faults_at_random_moments_leave_every_request_answered_or_typed() -> None:
    """No call hangs or fails without a type; no lease, process, descriptor or file stays behind."""
    command = [sys.executable, str(ROOT / "bench" / "faults.py"), "--seed", "10"]
    done = subprocess.run(
        [*command, "--faults", str(FAULTS), "--quick", "--keep"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        cwd=ROOT,
    )
    assert done.stdout, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert {k: told[k] for k in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0), done.stderr[-4000:]
    assert sum(told["faults"].values()) == FAULTS
    assert told["answered"] > 0
    ended = told["answered"] + sum(told["failed"].values()) + told["given_up"] + told["with_caller"]
    assert ended == told["requests"]
    assert done.returncode == 0
    (root,) = re.findall(r"the logs of seed 10 are in (\S+)", done.stderr)
    try:
        _assert_traces_open(Path(root) / "kept-runs")
    finally:
        shutil.rmtree(root)


def _assert_traces_open(folder: Path) -> None:
    """Perfetto takes every trace that the callers left, also of those that were killed.

    Lanes nest, arrows are bound, and there are as many slices as were written, and as many requests as the
    run's line tells.
    """
    # A caller that was killed before its first tenth of a second leaves an empty file.
    traces = [trace for trace in sorted(folder.glob("*.trace.json")) if trace.stat().st_size]
    assert traces
    lines = [line for line in read_runs(folder / "runs.jsonl") if isinstance(line, RunLine)]
    told = {Path(line.trace).name: line for line in lines if line.trace}
    for trace in traces:
        file = TraceFile(trace)
        events = list(file.events())
        asked = sum(event.get("cat") == names.REQUEST and event["ph"] == "X" for event in events)
        if file.cut:
            # A caller that was killed: what is there is taken, up to the cut.
            slices, problems = query_many(trace, [SLICES, PROBLEMS])
            assert (len(slices), problems) == (sum(one["ph"] == "X" for one in events), [])
            trace.write_text("[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n", "utf-8")
        elif not told[trace.name].problems:
            assert asked == len(told[trace.name].requests)
        assert_sound(trace)
    assert list(folder.glob("*.part")) == []
