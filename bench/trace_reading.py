"""What reading a very large trace costs: seconds and peak memory of `keepwarm trace summary` and `merge`.

Run with `python -m bench.trace_reading [--gigabytes N]`. Records a run, repeats its events up to that size
in a temporary folder, and runs each command in a process of its own. Prints one JSON object as its last
line: `bytes`, `requests`, `file_bytes`, and by command `seconds` and `peak_bytes` (resident set). The
folder is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from traces import LoadSpan, RequestRecord, RunTrace, names

BLOCK_REQUESTS = 5_000
LENGTH_NS = 50_000_000
_MEASURED = """
import resource, sys
from shim.cli import main
try:
    main(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)
"""


def record(number: int, origin_ns: int) -> RequestRecord:
    """A request of 50 ms; four slots are busy at any time."""
    start_ns = origin_ns + number * LENGTH_NS // 4
    return RequestRecord(
        f"r{number}",
        "model",
        "llama.cpp",
        queued_ns=start_ns,
        granted_ns=start_ns + 100_000,
        sent_ns=start_ns + 200_000,
        first_token_ns=start_ns + 20_000_000,
        end_ns=start_ns + LENGTH_NS,
        slot=number % 4,
        prompt_tokens=100,
        completion_tokens=30,
        prompt_ms=19.0,
        predicted_ms=30.0,
        finish_reason="stop",
    )


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The events of a run with many requests and one load, in their order."""
    with RunTrace("block", folder, process_wide=False) as run:
        origin_ns = time.monotonic_ns()
        run.load(LoadSpan("model/1", "model", "host", origin_ns - 10**9, origin_ns, 10**9, "cold"))
        run.flush()
        for number in range(BLOCK_REQUESTS):
            run.request(record(number, origin_ns))
    assert run.trace_path is not None
    assert run.problems == []
    events: list[dict[str, Any]] = json.loads(run.trace_path.read_text("utf-8"))
    return events


def repeated(events: list[dict[str, Any]], file: Path, n_bytes: int) -> int:
    """Write the events again and again, each time later and under other ids; returns how many times."""
    repeats = [event for event in events if event.get("cat") not in (names.RUN, names.MODEL_LOAD)]
    times = [event["ts"] for event in repeats if "ts" in event]
    length_us = max(times) - min(times) + 10**5
    texts = [_template(event) for event in repeats if event["ph"] != "M"]
    count = 0
    with file.open("w", encoding="utf-8") as out:
        out.write("[\n" + ",\n".join(map(json.dumps, events)))
        while out.tell() < n_bytes:
            count += 1
            out.writelines(
                ",\n"
                + text.replace("@ID@", f"{count}-").replace(
                    '"@TS@"', f"{ts + count * length_us:.3f}"
                )
                for text, ts in texts
            )
        out.write("\n]\n")
    return count + 1


def _template(event: dict[str, Any]) -> tuple[str, float]:
    """An event as text with places for its id and its time, and its time."""
    args = dict(event.get("args", {}))
    if names.REQUEST_ID in args:
        args[names.REQUEST_ID] = f"@ID@{args[names.REQUEST_ID]}"
    marked = {**event, "ts": "@TS@"} | ({"args": args} if args else {})
    for key in ("id", "id2"):
        if key in event:
            marked[key] = {"local": f"@ID@{event[key]}"} if key == "id2" else f"@ID@{event[key]}"
    return json.dumps(marked), float(event["ts"])


def measured(*words: str) -> dict[str, float]:
    """Seconds and peak memory of a command."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *words], capture_output=True, text=True, check=True
    )
    peak = int(done.stderr.split()[-1])
    return {"seconds": round(time.monotonic() - began, 1), "peak_bytes": peak}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    wanted = parser.parse_args()
    os.nice(5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "large.trace.json"
        blocks = repeated(recorded(folder), file, int(wanted.gigabytes * 1e9))
        small = folder / "block.trace.json"
        result: dict[str, Any] = {
            "file_bytes": file.stat().st_size,
            "requests": blocks * BLOCK_REQUESTS,
            "summary of a small one": measured("trace", "summary", str(small), "--json"),
            "summary": measured("trace", "summary", str(file), "--json"),
            "merge": measured(
                "trace", "merge", str(file), str(small), "-o", str(folder / "m.json.gz")
            ),
            "own_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
