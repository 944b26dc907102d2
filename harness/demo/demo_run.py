"""One run of the demo: the pipeline under a budget, traced, and its memory sampled from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from harness.demo.demo_settings import booked_bytes, demo_config, half_limit_bytes
from harness.demo.found_models import DemoModels
from harness.demo.memory_samples import Measured, MemorySampler
from harness.demo.spoken_requests import REQUESTS, Request
from harness.demo.stages import demo_pipeline
from harness.pipeline import ItemResult
from harness.roles import Roles
from shim import InternalError, OutsideError, Shim
from traces import RunLine, RunTrace, read_runs

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoReport:
    """Everything that the demo prints. Bytes are ints; `books` are the device's rows of `ps`."""

    device: str
    limit_bytes: int
    booked: Mapping[str, int]
    items: Sequence[ItemResult]
    books_before: Mapping[str, Any]
    books_after: Mapping[str, Any]
    measured: Measured
    loads: int
    evictions: int
    trace: str
    runs: str


def run_demo(
    models: DemoModels,
    device: str,
    n_requests: int,
    trace_folder: Path | None,
    say: Say,
) -> DemoReport:
    """Run the pipeline over the first `n_requests` requests (repeated when there are more).

    The keeper runs inside this process, in a private folder. It shares the device with a keeper that may
    run already, because these models are small. Nothing is left when this returns or raises.

    Raises:
        KeepwarmError: a model cannot be measured, loaded or asked.
        OutsideError: the trace cannot be kept; said before anything is loaded.
    """
    run = RunTrace(directory=trace_folder, service="keepwarm demo")
    _check_kept(run)
    say("measuring what the models take")
    name, booked = booked_bytes(demo_config(models, device))
    limit = half_limit_bytes(booked)
    inputs = [REQUESTS[i % len(REQUESTS)] for i in range(n_requests)]
    with closing(Shim(demo_config(models, name, limit), inline=True, share=True)) as shim, run:
        Roles.of(shim)
        shim.status()  # starts the keeper, so that the evaluator's load is on the trace
        with MemorySampler(shim.runtime, name) as sampler:
            say("loading the pinned evaluator")
            shim.load("evaluator")
            before = _books(shim, name)
            items = _run_items(shim, inputs, say)
            after = _books(shim, name)
            measured = sampler.result()
    line = _line_of(run)
    return DemoReport(
        device=name,
        limit_bytes=limit,
        booked=booked,
        items=items,
        books_before=before,
        books_after=after,
        measured=measured,
        loads=line.loads,
        evictions=line.evictions,
        trace=str(run.trace_path),
        runs=str(run.runs_path),
    )


def _check_kept(run: RunTrace) -> None:
    try:
        run.directory.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=run.directory):
            pass
    except OSError as error:
        raise _not_kept(run, error) from error


def _not_kept(run: RunTrace, error: OSError) -> OutsideError:
    return OutsideError(
        f"The trace of the run cannot be kept in {run.directory}: {error.strerror or error}.",
        hint="Give `--trace-dir` a folder that can be written.",
    )


def _line_of(run: RunTrace) -> RunLine:
    try:
        for line in read_runs(run.runs_path):
            if isinstance(line, RunLine) and line.run_id == run.run_id:
                return line
    except OSError as error:
        raise _not_kept(run, error) from error
    raise InternalError(f"{run.runs_path} has no line of run {run.run_id}: {run.problems}")


def _run_items(shim: Shim, inputs: Sequence[Request], say: Say) -> list[ItemResult]:
    items = []
    for item in demo_pipeline(shim).iterate(inputs):
        items.append(item)
        say(f"request {len(items)} of {len(inputs)} done")
    return items


def _books(shim: Shim, device: str) -> dict[str, Any]:
    status = shim.status()
    row: dict[str, Any] = next(d for d in status["devices"] if d["device"] == device)
    resident = {
        "+".join(engine["models"]): engine["bytes"].get(device, 0)
        for engine in status["engines"]
        if engine["loaded_s"] is not None
    }
    return {**row, "resident": resident}
