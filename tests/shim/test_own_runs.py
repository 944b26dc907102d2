"""`[trace] enabled` in Python programs: a run of the calls that belong to no run of the program's own."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from budget.errors import ConfigError
from shim import Config, Shim
from shim.calls.own_run import OwnRun
from shim.config import TraceSection
from tests.perfetto import assert_sound
from tests.shim.conftest import Stage
from tests.traces.support import events
from traces import LoadSpan, RunLine, RunTrace, current_run, names, read_runs


@pytest.fixture
def traced(stage: Stage, tmp_path: Path) -> Iterator[Shim]:
    """The stage's models, with traces in a folder of the test."""
    asked = {"enabled": True, "folder": str(tmp_path)}
    config = Config.from_mapping({**stage.shim.config.to_mapping(), "trace": asked})
    with Shim(config, factory=stage.make) as shim:
        yield shim


def runs(folder: Path) -> list[RunLine]:
    """The runs that were written."""
    file = folder / "runs.jsonl"
    found = list(read_runs(file)) if file.exists() else []
    assert all(isinstance(line, RunLine) for line in found)
    return [line for line in found if isinstance(line, RunLine)]


def test_calls_of_a_program_are_one_run_that_ends_with_the_shim(
    traced: Shim, tmp_path: Path
) -> None:
    """All kinds of calls, with the load that the first waited for; the line is written by `close`."""
    traced.load("a")
    traced.chat("a", "Hi.")
    list(traced.stream("a", "Hi."))
    asyncio.run(traced.achat("a", "Hi."))
    traced.embed("a", ["x"])
    assert current_run() is None
    assert runs(tmp_path) == []
    traced.close()
    (run,) = runs(tmp_path)
    assert [line.operation for line in run.requests] == ["chat", "chat", "chat", "embeddings"]
    assert run.loads == 1
    assert run.trace is not None
    assert Path(run.trace).parent == tmp_path


def test_a_run_of_the_programs_own_has_its_calls(traced: Shim, tmp_path: Path) -> None:
    """Calls in it are in no second run, and threads belong to it though the other run is open as well."""
    traced.chat("a", "Hi.")
    with RunTrace(directory=tmp_path) as own:
        traced.chat("a", "Hi.")
        assert current_run() is own
    traced.close()
    assert [len(run.requests) for run in runs(tmp_path)] == [1, 1]


def test_nothing_is_written_where_no_call_is_made_or_none_is_asked_for(
    traced: Shim, stage: Stage, tmp_path: Path
) -> None:
    """Looking is no run; and `[trace]` is off where it is not turned on."""
    traced.status()
    traced.close()
    stage.shim.chat("a", "Hi.")
    stage.shim.close()
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_makes_very_many_calls_writes_several_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and the line of a run have an end."""
    monkeypatch.setattr("shim.calls.own_run.MOST_CALLS", 2)
    section, run = TraceSection(enabled=True, folder=tmp_path), OwnRun()
    found = [run.get(section) for _ in range(5)]
    run.close()
    run.close()
    assert len({id(each) for each in found}) == 3
    assert len(runs(tmp_path)) == 3


def test_sample_and_rotation_come_from_the_configuration(stage: Stage, tmp_path: Path) -> None:
    """For a program's own run made of a `Shim`; the defaults of both places are the same."""
    asked = {"folder": str(tmp_path), "sample": 0, "max_bytes": "64KiB"}
    config = Config.from_mapping({**stage.shim.config.to_mapping(), "trace": asked})
    with Shim(config, factory=stage.make) as shim, shim.traced("sampled") as run:
        shim.chat("a", "Hi.")
        # One record that fills a file: many would come in as many files as batches were written.
        run.load(LoadSpan("l", "m" * 70_000, "host", 0, 1, 1, "cold"))
        run.flush()
        shim.chat("a", "Hi.")
    found = runs(tmp_path)
    assert [len(line.requests) for line in found] == [0, 0]
    assert found[0].loads == 1
    defaults, told = inspect.signature(RunTrace).parameters, TraceSection()
    assert (told.sample, told.most_bytes, told.most_age_s) == (
        defaults["sample"].default,
        defaults["max_bytes"].default,
        defaults["max_age"].default,
    )


@pytest.mark.parametrize("sample", [-0.1, 1.5, "0.5", True])
def test_a_share_that_is_none_is_refused_by_its_key(stage: Stage, sample: object) -> None:
    """A percentage, or a text, is no share."""
    with pytest.raises(ConfigError, match="sample"):
        Config.from_mapping({**stage.shim.config.to_mapping(), "trace": {"sample": sample}})


def test_a_run_of_the_configuration_is_not_rotated_at_every_batch() -> None:
    """A size or an age of 0 would make ten files a second."""
    section = TraceSection.model_validate({"max_bytes": 0, "max_age": 0})
    assert (section.most_bytes, section.most_age_s) == (65_536, 1.0)


def test_workers_that_ask_one_keeper_are_in_the_run_with_the_load_they_waited_for(
    stage: Stage, tmp_path: Path
) -> None:
    """Two forked children; the run's own process asks for nothing but the keeper's history."""
    stage.shim.status()
    with RunTrace("workers", tmp_path, service="harness") as run:
        for _ in range(2):
            child = os.fork()
            if child == 0:
                stage.shim.chat("a", "Hi.")
                run.flush()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert run.problems == []
    assert run.trace_path is not None
    assert_sound(run.trace_path)
    (line,) = runs(tmp_path)
    assert [(one.model, one.cold) for one in line.requests] == [("a", True), ("a", False)]
    assert line.loads == 1
    (load,) = (one for one in events(run.trace_path) if one.get("cat") == names.MODEL_LOAD)
    assert load["args"][names.HIDDEN] is False
