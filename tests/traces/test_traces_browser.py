"""The first screen of a trace in a real browser, in the UI that `keepwarm trace open` serves."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.traces.support import MS, events, evict, load, now, request
from tools.chromium import chromium
from traces import CounterSample, RunTrace
from traces.chrome.perfetto import TraceServer
from traces.chrome.sql import node_program

SCRIPT = Path(__file__).with_name("in_browser.js")
PICTURES = Path(__file__).resolve().parents[2] / "build" / "screens"
LIMIT_S = 150.0
GROUP = re.compile(r"[1-4] \w+ .* \d+$")


def shown(trace: Path, picture: str, *, dropped: bool = False) -> dict[str, Any]:
    """The titles of the tracks in their order on the page, and what went wrong there.

    `dropped`: opened without the commands that `keepwarm trace open` gives the UI.
    """
    PICTURES.mkdir(parents=True, exist_ok=True)
    program = chromium()
    assert program is not None, "run `make test-browser`, which gets Chromium"
    with TraceServer(trace) as server:
        url = server.url.partition("&startupCommands=")[0] if dropped else server.url
        done = subprocess.run(
            [node_program(), SCRIPT, program, url, PICTURES / picture],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _run(folder: Path, engines: int) -> Path:
    """Requests of so many engines, the last of them with the most, after a load and an eviction."""
    with RunTrace("shown", folder, service="letters") as run:
        at = now() - 2000 * MS
        run.record_span("read letters", at, at + 900 * MS)
        run.load(load("l1", at, ms=300, storage="cold", device="cuda:0"))
        run.evict(evict("e1", at + 1000 * MS, device="host"))
        for moment in range(5):
            for device in ("host", "cuda:0"):
                books = {"m": 1000 * moment}
                run.counter(CounterSample(at + moment * 300 * MS, device, books, 10**4, 10**4))
        for engine in range(engines):
            for number in range(3 + engine):
                start = at + (310 + number * 90 + engine * 11) * MS
                run.request(
                    request(f"{engine}-{number}", start, model=f"m{engine}", slot=number % 2)
                )
        run.request(request("far", at + 500 * MS, model="far", engine="vllm", remote=True))
    assert run.problems == []
    assert run.trace_path is not None
    return run.trace_path


def _groups(titles: list[str]) -> list[str]:
    """The groups among the titles, without their numbers."""
    return [title.rpartition(" ")[0] for title in titles if GROUP.match(title)]


@pytest.mark.browser
@pytest.mark.parametrize("engines", [2, 12])
def test_the_first_screen_has_the_run_then_devices_then_engines_by_first_use(
    tmp_path: Path, engines: int
) -> None:
    """That UI sorts by the number of slices: the address that opens it asks for the order of reading."""
    found = shown(_run(tmp_path, engines), f"{engines}-engines.png")
    assert found["errors"] == ""
    assert (
        _groups(found["tracks"])
        == [
            "1 run letters shown",
            "2 device cuda:0",
            "2 device host",
            *(f"3 engine m{engine} (llama.cpp)" for engine in range(engines)),
            "4 remote far (vllm)",
        ][: len(_groups(found["tracks"]))]
    )
    names = [title.rpartition(" ")[0] or title for title in found["tracks"]]
    assert names.index("run") < names.index("loads and evictions")
    assert "device bytes free" in found["tracks"]
    assert len(_groups(found["tracks"])) >= 5


@pytest.mark.browser
def test_a_file_that_is_dropped_into_the_ui_is_sorted_by_its_slices_whatever_it_asks_for(
    tmp_path: Path,
) -> None:
    """docs/reading-a-trace.md says so; the day this fails, a plain file can have the order of reading."""
    trace = _run(tmp_path, 2)
    lines = trace.read_text("utf-8").splitlines()
    hints = [
        json.dumps(
            {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        )
        for pid in range(1, 7)
    ]
    trace.write_text("\n".join([*lines[:-2], lines[-2] + ",", ",\n".join(hints), "]"]), "utf-8")
    found = shown(trace, "dropped.png", dropped=True)
    assert found["errors"] == ""
    slices = Counter(event["pid"] for event in events(trace) if event["ph"] in "Xb")
    order = [int(title.rpartition(" ")[2]) for title in found["tracks"] if GROUP.match(title)]
    assert order == sorted(order, key=lambda pid: -slices[pid])
    assert order != sorted(order)
