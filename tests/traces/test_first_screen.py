"""The commands with which the UI opens a trace."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest

from tests.traces.support import now, request
from traces import RunTrace
from traces.chrome.first_screen import MOST_GROUPS, startup_commands


def _patterns(trace: Path, command: str) -> list[str]:
    found = json.loads(startup_commands(trace))
    return [one["args"][0] for one in found if one["id"] == f"dev.perfetto.{command}"]


def _run(folder: Path, models: list[str], *, gzip: bool = False) -> Path:
    with RunTrace("shown", folder, gzip=gzip) as run:
        for number, model in enumerate(models):
            run.request(request(f"r{number}", now(), model=model))
    assert run.trace_path is not None
    return run.trace_path


@pytest.mark.parametrize("gzip", [False, True])
def test_groups_come_in_the_order_of_reading_and_few_engines_unfolded(
    tmp_path: Path, gzip: bool
) -> None:
    """Each pattern matches the title that the UI gives its group, and no other one."""
    models = ["zeta", "alpha", "ends with \\", 'with "quotes" (and) [more]', "emoji 🎉"]
    trace = _run(tmp_path, models, gzip=gzip)
    patterns = _patterns(trace, "CopyTracksToWorkspaceByRegex")
    titles = ["1 run keepwarm shown", *(f"3 engine {model} (llama.cpp)" for model in models)]
    # The run's group is named when the run ends, so its number is the last one.
    shown = [f"{titles[0]} {len(models) + 1}", *(f"{t} {n}" for n, t in enumerate(titles[1:], 1))]
    assert [[bool(re.search(p, title)) for title in shown] for p in patterns] == [
        [row == column for column in range(len(shown))] for row in range(len(shown))
    ]
    assert _patterns(trace, "ExpandTracksByRegex") == patterns[:1]
    few = _run(tmp_path, models[:2])
    assert len(_patterns(few, "ExpandTracksByRegex")) == 3


def test_other_files_and_very_many_groups_keep_the_uis_order(tmp_path: Path) -> None:
    """A trace of another program opens as it always did."""
    other = tmp_path / "other.json"
    other.write_text('[\n{"ph":"M","name":"process_name","pid":1,"args":{"name":"chrome"}}\n]\n')
    assert startup_commands(other) == ""
    other.write_text("no trace")
    assert startup_commands(other) == ""
    assert startup_commands(_run(tmp_path, [f"m{n}" for n in range(MOST_GROUPS)])) == ""


def test_a_file_that_is_cut_or_no_trace_has_what_can_be_read_of_it(tmp_path: Path) -> None:
    """Half a gzip ended `trace open` with a traceback; a line without an end took all memory."""
    packed = _run(tmp_path, ["a"], gzip=True)
    packed.write_bytes(packed.read_bytes()[:-20])
    assert isinstance(startup_commands(packed), str)
    endless = tmp_path / "endless.json"
    with endless.open("wb") as out:
        out.truncate(1 << 36)
    plain = _run(tmp_path, ["a"])
    data = plain.read_bytes().removesuffix(b"\n]\n")
    with endless.open("r+b") as out:
        out.write(data)
    tracemalloc.start()
    try:
        found = startup_commands(endless)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()
    assert found == startup_commands(plain)
