"""The slow run is explained after it happened: the keeper remembers, and `trace capture` writes."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from budget.errors import ConfigError, DeadlineExceeded, InvalidRequest
from shim.cli import main
from shim.cli.commands.trace import capture
from shim.config import Config
from shim.keeper.shell import request_ring
from shim.keeper.shell.history import History
from shim.keeper.shell.request_ring import RequestRing
from shim.keeper.shell.stories import DenialStory, Stories
from tests.metrics.conftest import Open
from tests.traces.support import events, written
from traces.reading.spans_of import spans_of
from traces.reading.stored_events import TraceFile
from traces.reading.summary import summarise

RING = {"trace": "ring"}


def told(it: Any, last_s: float = 300.0) -> dict[str, Any]:
    """What the keeper of a Shim remembers."""
    answer: dict[str, Any] = it.shim._session.connections.ask("capture", last_s=last_s)
    return answer


def test_a_captured_trace_has_what_happened(watched: Open, tmp_path: Path) -> None:
    """Requests with their loads, tokens and errors, although no run was open: the summary explains them."""
    it = watched(keeper=RING, metrics={})
    for model in ("a", "b", "b"):
        it.chat(model)
    it.shim.pin("b")
    with pytest.raises(DeadlineExceeded):
        it.shim.chat("a", [{"role": "user", "content": "hello"}], deadline_s=0.1)
    it.settle()
    run = capture.written(told(it), tmp_path)
    assert run.problems == []
    assert run.trace_path is not None
    slices = written(run.trace_path)
    loads = sum(count for name, count in slices.items() if name.startswith("model_load"))
    assert (slices["request"], loads) == (4, 2)
    assert sum(count for name, count in slices.items() if name.startswith("generate")) == 3
    summary = summarise(spans_of(TraceFile(run.trace_path).events()))
    assert {name: (m.requests, m.cold) for name, m in summary.models.items()} == {
        "a": (2, 1),
        "b": (2, 1),
    }
    assert (summary.evictions, summary.failed) == (1, 1)
    # The eviction for the first use of b takes less time here than a summary tells of.
    assert summary.waits[0].cause.split(" (")[0] == "other clients' pins to end: b"
    waited_for = [
        event["args"] for event in events(run.trace_path) if event.get("cat") == "model_load"
    ]
    assert [args.get("keepwarm.hidden", False) for args in waited_for] == [False, False]
    assert summary.wall_s > 0.1


def test_only_the_last_seconds_are_captured(watched: Open) -> None:
    """What ended before is left out, and the trace begins where the answer says."""
    it = watched(keeper=RING, metrics={})
    it.chat("a")
    it.settle()
    assert len(told(it)["requests"]) == 1
    answer = told(it, 1e-6)
    assert answer["requests"] == []
    assert answer["until_ns"] - answer["since_ns"] == 1000


def test_a_keeper_without_a_ring_says_how_to_have_one(watched: Open) -> None:
    """Off by default: nothing is remembered."""
    it = watched(metrics={})
    it.chat("a")
    with pytest.raises(InvalidRequest) as raised:
        told(it)
    assert 'trace = "ring"' in raised.value.hint


def section(**keys: Any) -> Any:
    """A `[keeper]` with a ring."""
    return Config.from_mapping({"keeper": {"trace": "ring", **keys}}).keeper


def test_the_ring_is_bounded_in_number_and_in_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """A keeper that runs for weeks remembers no more than that."""
    monkeypatch.setattr(request_ring, "MOST_REQUESTS", 5)
    stories = Stories(History(), str, str)
    ring = RequestRing(stories, History())
    ring.follow(section(trace_last=10))
    (remember,) = stories.listeners
    now_ns = time.monotonic_ns()

    def ended(number: int, ns: int) -> None:
        remember(DenialStory(f"r{number}", "c1", "m", ns, ns, "QueueFull"))

    for number in range(7):
        ended(number, now_ns)
    assert [row["request_id"] for row in ring.captured(10.0)["requests"]] == [
        "r2",
        "r3",
        "r4",
        "r5",
        "r6",
    ]
    ended(7, now_ns + 11 * 10**9)
    assert [row["request_id"] for row in ring.captured(10.0)["requests"]] == ["r7"]


def test_a_reload_begins_and_ends_the_ring() -> None:
    """Off means that nothing listens, and that what was remembered is gone."""
    stories = Stories(History(), str, str)
    ring = RequestRing(stories, History())
    for _ in range(2):
        ring.follow(section())
        assert len(stories.listeners) == 1
        assert ring.captured(1.0)["requests"] == []
    ring.follow(section(trace="off"))
    assert stories.listeners == []
    with pytest.raises(InvalidRequest):
        ring.captured(1.0)


def test_the_command_writes_a_trace_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path that `trace open` and `trace summary` take; a time that is none is the caller's mistake."""
    now_ns = time.monotonic_ns()
    denial = {
        "request_id": "r1", "client_id": "c1", "model": "m", "arrived_ns": now_ns - 10**9, "end_ns": now_ns,
        "error": "QueueFull",
    }  # fmt: skip
    answer = {
        "since_ns": now_ns - 2 * 10**9, "until_ns": now_ns, "requests": [denial],
        "history": {"loads": [], "evictions": [], "stagings": [], "samples": []},
    }  # fmt: skip
    asked: list[float] = []

    def ask(_op: str, last_s: float) -> dict[str, Any]:
        asked.append(last_s)
        return answer

    monkeypatch.setattr(capture, "ask_running", ask)
    folder = ["trace", "capture", "--folder", str(tmp_path)]
    said = json.loads(CliRunner().invoke(main, [*folder, "--last", "1m 30s", "--json"]).stdout)
    assert (said["requests"], said["seconds"], asked) == (1, 2.0, [90.0])
    assert written(Path(said["trace"]))["request"] == 1
    assert str(tmp_path) in CliRunner().invoke(main, folder).stdout
    for wrong in ("0s", "soon"):
        assert CliRunner().invoke(main, [*folder, "--last", wrong]).exit_code == 2
    assert (
        "found soon: not a duration. Allowed: seconds, or a text such as 90s"
        in CliRunner().invoke(main, [*folder, "--last", "soon"]).stderr
    )
    monkeypatch.setattr(capture, "ask_running", lambda _op, **_fields: None)
    assert "No keeper runs in" in CliRunner().invoke(main, folder).output


def test_a_capture_of_nothing_says_so_and_writes_no_file(
    watched: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace with the books alone explains no slow request."""
    it = watched(keeper=RING, metrics={})
    answer = told(it)
    monkeypatch.setattr(capture, "ask_running", lambda *_, **__: answer)
    said = CliRunner().invoke(main, ["trace", "capture", "--folder", str(tmp_path)])
    assert said.exit_code == 2
    assert "Nothing was in the last" in said.stderr
    assert "Look further back with --last." in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_ring_of_no_time_is_refused() -> None:
    """It would remember nothing, without a word."""
    with pytest.raises(ConfigError, match=r"trace_last.*above 0"):
        section(trace_last="0s")


def test_a_capture_on_a_full_disk_is_an_error_and_can_be_repeated(
    watched: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that ends early was told as if it were whole. The keeper goes on, and still remembers."""
    it = watched(keeper=RING)
    for _ in range(20):
        it.chat("a")
    it.settle()
    answer = told(it)
    monkeypatch.setattr(capture, "ask_running", lambda *_, **__: answer)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    command = ["trace", "capture", "--folder", str(tmp_path)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        full = CliRunner().invoke(main, command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert full.exit_code == 4
    assert full.stderr.count("File too large") == 1
    assert "The trace is not whole" in full.stderr
    assert it.chat("a")
    again = CliRunner().invoke(main, [*command, "--json"])
    assert again.exit_code == 0
    assert written(Path(json.loads(again.stdout)["trace"]))["request"] == 20
