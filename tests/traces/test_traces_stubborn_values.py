"""What a traced program gives its spans costs neither the program nor the rest of the trace."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Any

import pytest

from tests.traces.support import events
from traces import RunTrace, read_runs
from traces.chrome.file import LONGEST_LINE
from traces.processes.shared_run import named_run
from traces.reading.stored_events import TraceFile


class _Grade(IntEnum):
    GOOD = 1


class _Colour(StrEnum):
    RED = "red"


class _Measured(float):
    """As a number of NumPy: a float that is written as a call."""

    def __repr__(self) -> str:
        return f"measured({float(self)})"


class _Mute:
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class _Broken(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("changed meanwhile")

    def __len__(self) -> int:
        return 1


class _MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "written"),
    [(_Grade.GOOD, 1), (_Colour.RED, "red"), (_Measured(1.5), 1.5), ([_Grade.GOOD], "[1]")],
)
def test_a_subclass_of_a_number_or_a_text_is_written_as_what_it_is(
    tmp_path: Path, value: object, written: object
) -> None:
    """One enum or NumPy number as an attribute made a file that nothing could read."""
    with RunTrace(directory=tmp_path) as run, run.span("piece", grade=value):
        pass
    assert run.trace_path is not None
    (piece,) = [e for e in json.loads(run.trace_path.read_bytes()) if e["name"] == "piece"]
    assert piece["args"]["grade"] == written


@pytest.mark.parametrize(
    "value",
    [_endless(), {"itself": _endless()}, _Broken(), {_Mute(): 1}, 10**5000, [10**5000], _Mute()],
    ids=["endless", "endless within", "broken", "mute key", "long number", "long within", "mute"],
)
def test_a_value_whose_own_code_fails_costs_the_program_nothing(
    tmp_path: Path, value: object
) -> None:
    """A span with it is on the trace as all others, and nothing is raised."""
    with RunTrace(directory=tmp_path) as run, run.span("piece", value=value):
        pass
    assert run.problems == []
    assert run.trace_path is not None
    assert [e["name"] for e in events(run.trace_path) if e.get("cat") == "stage"] == ["piece"]


def test_an_error_without_a_message_is_the_one_that_the_program_gets(tmp_path: Path) -> None:
    """Its span and its run are recorded as failed, and it is not replaced by another."""
    run = RunTrace(directory=tmp_path)
    with pytest.raises(_MuteError), run, run.span("piece"):
        raise _MuteError
    (line,) = read_runs(run.runs_path)
    assert run.problems == []
    assert not isinstance(line, ValueError)
    assert (line.error_type, line.error_message) == ("_MuteError", "<_MuteError>")


def test_a_very_long_message_or_name_leaves_a_trace_that_can_be_read(tmp_path: Path) -> None:
    """A message is cut; an event that no reader would take is left out, and that is said."""
    run = RunTrace(directory=tmp_path)
    with pytest.raises(ValueError, match="xx"), run, run.span("y" * LONGEST_LINE):
        raise ValueError("x" * LONGEST_LINE)
    assert run.trace_path is not None
    (whole,) = [e for e in TraceFile(run.trace_path).events() if e["name"] == "run"]
    assert whole["args"]["error.message"].endswith("more characters)")
    assert run.problems == ["events: 1 of more than 16,777,216 bytes were left out"]


def test_a_service_that_is_no_unicode_has_a_line_that_can_be_read(tmp_path: Path) -> None:
    """Its run was in no list."""
    with RunTrace(directory=tmp_path, service="a\ud800") as run:
        pass
    assert [getattr(line, "service", line) for line in read_runs(run.runs_path)] == ["a\ufffd"]


def test_a_pipe_in_place_of_a_run_holds_no_program_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that names the run of a parent may name anything."""
    os.mkfifo(tmp_path / "run.open")
    monkeypatch.setenv("KEEPWARM_TRACE_RUN", str(tmp_path / "run.open"))
    assert named_run() is None
