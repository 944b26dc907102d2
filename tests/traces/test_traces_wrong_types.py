"""Every public door of the traces, given what it cannot use: a typed error, never one of Python's own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import traces
from tests.traces.support import evict, load, now, request
from traces import (
    CounterSample,
    EvictSpan,
    Incident,
    InvalidArgument,
    LoadSpan,
    RequestLine,
    RequestRecord,
    RunLine,
    RunTrace,
    append_run,
    otlp_exporter,
    read_runs,
)
from traces.checked import shown


async def later() -> None:
    """A function whose answer has to be awaited."""


class Unshown:
    """A value whose own code fails where an error quotes it."""

    def __repr__(self) -> str:
        raise OSError("it is gone")


WRONG: tuple[Any, ...] = (
    object(), Unshown(), 3.5, math.nan, math.inf, True, -1, 10**30, 10**400, b"x", "\0", "\ud800", [3],
    {1: 2}, None, print,
)  # fmt: skip
"""What a parameter may be given by mistake. Some fit one parameter or another, and are no mistake there."""

Door = tuple[Callable[..., Any], dict[str, Any]]
REQUEST = RequestLine(
    "r", "m", "e", "chat", remote=False, cold=False, arrival_s=0.0, waited_s=0.0, load_s=0.0, ttft_s=None,
    total_s=1.0, prompt_tokens=1, cached_tokens=0, output_tokens=1, tokens_per_s=None, finish_reason=None,
    error=None,
)  # fmt: skip
LINE = RunLine("r", "s", "2026-11-21T13:45:01+00:00", 1.0, "ok", requests=(REQUEST,))


def doors(folder: Path, run: RunTrace) -> dict[str, Door]:
    """Each public function with arguments that it takes."""
    return _of_runs(folder, run) | _of_records() | _of_lines(folder)


def _of_runs(folder: Path, open_run: RunTrace) -> dict[str, Door]:
    def made(**given: Any) -> None:
        with RunTrace(**{"directory": folder} | given):
            pass

    usual = {
        "run_id": "r", "directory": folder, "gzip": False, "record_content": False, "service": "s",
        "exporters": [InMemorySpanExporter()], "process_wide": True, "sample": 1.0, "max_bytes": 10**6,
        "max_age": None, "current": True, "started_ns": now(),
    }  # fmt: skip
    return {
        "RunTrace": (made, usual),
        "RunTrace.on_finish": (open_run.on_finish, {"action": lambda: None}),
        "RunTrace.carry": (open_run.carry, {"function": print}),
        "RunTrace.load": (open_run.load, {"load": load("l", now())}),
        "RunTrace.evict": (open_run.evict, {"evict": evict("e", now())}),
        "RunTrace.request": (open_run.request, {"record": request("q", now())}),
        "RunTrace.records": (open_run.records, {"build": list, "n_bytes": 0}),
        "RunTrace.incident": (open_run.incident, {"incident": Incident("died", 1, 2)}),
        "RunTrace.counter": (open_run.counter, {"sample": CounterSample(1, "host", {}, 1, 2)}),
        "RunTrace.record_span": (
            open_run.record_span,
            {"name": "n", "start_ns": 1, "end_ns": 2, "attributes": {"a": 1}},
        ),
        "RunTrace.span": (
            lambda **given: open_run.span(given.pop("name", "n"), **given),
            {"name": "n", "start_ns": None, "attributes": 1},
        ),
    }


def _of_records() -> dict[str, Door]:
    counts = {"start_ns": 1, "end_ns": 2, "bytes": 3}
    more: dict[str, Any] = {"attributes": {}, "phases": (), "reason": "", **counts}
    queried = request("q", now())
    return {
        "LoadSpan": (
            LoadSpan,
            {"load_id": "l", "model": "m", "device": "d", "storage": "cold", "engine": "e", **more},
        ),
        "EvictSpan": (
            EvictSpan,
            {"evict_id": "l", "model": "m", "device": "d", "for_model": None, **more},
        ),
        "Incident": (
            Incident,
            {
                "kind": "died",
                "start_ns": 1,
                "end_ns": 2,
                "model": "",
                "device": "",
                "attributes": {},
            },
        ),
        "RequestRecord": (
            RequestRecord,
            {name: getattr(queried, name) for name in RequestRecord.__slots__},
        ),
        "CounterSample": (
            CounterSample,
            {"ns": 1, "device": "d", "resident": {}, "free_bytes": 1, "limit_bytes": 2}
            | {"reserved_bytes": None, "protected_bytes": None, "ceiling_bytes": None}
            | {"measured_free_bytes": None},
        ),
    }


def _of_lines(folder: Path) -> dict[str, Door]:
    file = folder / "runs.jsonl"
    return {
        "RequestLine": (
            RequestLine,
            {name: getattr(REQUEST, name) for name in RequestLine.__slots__},
        ),
        "RunLine": (RunLine, {name: getattr(LINE, name) for name in RunLine.__slots__}),
        "append_run": (append_run, {"path": file, "line": LINE, "requests": ()}),
        "read_runs": (lambda **given: list(read_runs(**given)), {"path": file}),
        "otlp_exporter": (otlp_exporter, {"address": "http://127.0.0.1:9"}),
    }


NO_ARGUMENTS = {"Storage", "current_run", "default_directory"}
MADE_HERE = {"SpanHandle", "InvalidArgument", "EnteredTwice"}
"""What the traces make themselves and give to a program."""
TRUTHS = {"gzip", "record_content", "process_wide", "current"}
"""Parameters of a run that may be anything: what is true is true."""
INSIDE = {"begin_span", "end_span", "outlived", "after_fork", "flush"}
"""Methods that spans and forks call, or that take nothing."""


@pytest.fixture
def walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Door]]:
    """The doors, in a folder of their own, while a run is open."""
    monkeypatch.chdir(tmp_path)
    with RunTrace("open", tmp_path) as run:
        yield doors(tmp_path, run)


def test_every_public_name_has_its_door_here_with_every_parameter(walked: dict[str, Door]) -> None:
    """So that what is added is walked through as well."""
    public = {name for name in traces.__all__ if callable(getattr(traces, name))}
    assert {name.partition(".")[0] for name in walked} == public - NO_ARGUMENTS - MADE_HERE
    methods = {
        name
        for name, found in inspect.getmembers(RunTrace, inspect.isfunction)
        if not name.startswith("_")
    }
    assert {name.partition(".")[2] for name in walked if "." in name} == methods - INSIDE
    for name, (_, given) in walked.items():
        owner, _, method = name.partition(".")
        found = getattr(traces, owner)
        known = inspect.signature(getattr(found, method) if method else found).parameters
        assert set(given) == set(known) - {"self"}, name


def test_a_wrong_type_at_a_public_door_is_a_typed_error(walked: dict[str, Door]) -> None:
    """Each parameter of each door in turn; what Python would say of it is never what a caller reads."""
    raw = list[str]()
    for name, (call, usual) in walked.items():
        call(**usual)
        for parameter in usual.keys() - TRUTHS:
            for wrong in WRONG:
                try:
                    call(**usual | {parameter: wrong})
                except (InvalidArgument, OSError):
                    continue
                except Exception as error:
                    raw.append(
                        f"{name}({parameter}={shown(wrong)}): {type(error).__name__}: {error}"
                    )
    assert raw == []


@pytest.mark.parametrize(
    ("door", "parameter", "wrong"),
    [
        ("RunTrace", "service", 5),
        ("RunTrace", "run_id", 3),
        ("RunTrace", "directory", 3),
        ("RunTrace", "exporters", [3]),
        ("RunTrace", "exporters", "x"),
        ("RunTrace", "sample", math.nan),
        ("RunTrace", "max_bytes", 0),
        ("RunTrace", "started_ns", 1.5),
        ("RunTrace", "max_age", 10**400),
        ("RunTrace", "exporters", iter([3])),
        ("RunTrace.on_finish", "action", 3),
        ("RunTrace.on_finish", "action", later),
        ("RunTrace.carry", "function", "x"),
        ("RunTrace.request", "record", {"model": "m"}),
        ("RunTrace.record_span", "start_ns", 1.5),
        ("RunTrace.record_span", "attributes", [3]),
        ("RunTrace.span", "name", 3),
        ("LoadSpan", "storage", "lukewarm"),
        ("LoadSpan", "bytes", 1.5),
        ("RequestRecord", "model", None),
        ("RequestRecord", "prompt_ms", math.nan),
        ("RequestRecord", "cold", 1),
        ("CounterSample", "resident", {1: 2}),
        ("RunLine", "seconds", "x"),
        ("append_run", "line", {"run_id": "r"}),
        ("append_run", "requests", "x"),
        ("read_runs", "path", 3),
        ("otlp_exporter", "address", "127.0.0.1:4318"),
    ],
)
def test_a_mistake_is_refused_with_what_was_found_and_what_is_allowed(
    walked: dict[str, Door], door: str, parameter: str, wrong: object
) -> None:
    """Nothing is taken for something near: no true for 1, no number for a name, no NaN for a time."""
    call, usual = walked[door]
    with pytest.raises(InvalidArgument) as refused:
        call(**usual | {parameter: wrong})
    assert refused.value.found in str(refused.value)
    assert refused.value.allowed in str(refused.value)
