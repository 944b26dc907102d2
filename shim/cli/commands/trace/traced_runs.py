"""Where the traces of runs are, which one a command means, and what is in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import click

from budget.errors import InvalidRequest
from shim.cli.console.context import read_config
from shim.cli.console.failure import outside
from shim.cli.console.output import counted
from shim.cli.console.said_lines import say
from traces import RunLine, default_directory, read_runs
from traces.processes.late_parts import add_late_parts
from traces.processes.shared_run import is_open, marker_of_run
from traces.reading.stored_events import BadTrace, Event, TraceFile
from traces.reading.unended import NO_LINE, NOT_ENDED, RECORDING, unended_runs
from traces.runs import FILE_NAME

HOW_TO_TRACE: Final = (
    "A program is traced within `with RunTrace():`; commands and programs are with `enabled = true` in "
    "[trace]."
)
WHICH_TRACES: Final = "`keepwarm trace list` shows the traces of runs."
"""The hint where a file was named that is no trace of a run."""

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The folder of the traces. Default: [trace] folder, or the user's state folder.",
)


def traces_folder(ctx: click.Context, given: Path | None) -> Path:
    """Where runs are kept: the folder that was named, else by the configuration.

    Raises:
        InvalidRequest: what was named is not there, or no folder.
    """
    if given is None:
        configured = read_config(ctx, uses=("trace",)).trace.folder
        return configured or default_directory()
    if not given.is_dir():
        what = "no folder" if given.exists() else "nothing"
        raise InvalidRequest(
            f"Found {what} at {given}.",
            hint="Give the folder of the traces as --folder, or leave it out.",
            folder=str(given),
        )
    return given


def runs_in(folder: Path) -> tuple[list[RunLine], list[ValueError]]:
    """The runs of a folder by their ends, oldest first, and the lines that cannot be read.

    Those that have no line, because they have not ended or were killed, stand by their last writes.

    Raises:
        OutsideError: the file cannot be read.
    """
    path = folder / FILE_NAME
    with outside(path, "read"):
        lines = list(read_runs(path)) if path.exists() else []
        found = [line for line in lines if isinstance(line, RunLine)]
        known = {line.trace for line in found if line.trace is not None}
        found = _by_their_ends(found, unended_runs(folder, known))
    return found, [line for line in lines if isinstance(line, ValueError)]


def _by_their_ends(ended: list[RunLine], others: list[RunLine]) -> list[RunLine]:
    """Both together; runs that have ended keep their order, whatever the clock did meanwhile."""
    timed, reached = list[tuple[float, RunLine]](), -math.inf
    for run in ended:
        reached = max(reached, _ended_s(run))
        timed.append((reached, run))
    timed += ((_ended_s(run), run) for run in others)
    return [run for _, run in sorted(timed, key=lambda one: one[0])]


def _ended_s(run: RunLine) -> float:
    try:
        return datetime.fromisoformat(run.started).timestamp() + run.seconds
    except (ValueError, OverflowError):
        return -math.inf


def trace_path(wanted: str | None, folder: Path) -> Path:
    """The file of a trace by its path or its run; the last trace where neither is given.

    What processes of the run wrote that were too late for it is added to the file, and said. So is that a
    run has not ended.

    Raises:
        InvalidRequest: no run was traced, or none has that name.
    """
    if wanted is not None and _is_there(wanted):
        return _with_late_parts(Path(wanted))
    traced = [run for run in runs_in(folder)[0] if run.trace is not None]
    for run in reversed(traced):
        # Without a name the last one is meant that a program is done with.
        if wanted == run.run_id or (wanted is None and run.status not in (RECORDING, NO_LINE)):
            if run.status in (RECORDING, NOT_ENDED):
                say(f"keepwarm: run {run.run_id} {_STATES[run.status]}", err=True)
            return _with_late_parts(Path(str(run.trace)))
    raise _no_trace(wanted, folder, traced)


def _is_there(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:
        # Too long for a name.
        return False


_STATES: Final = {
    RECORDING: "is still recorded: this is what it wrote so far.",
    NOT_ENDED: "has not ended, or was killed: this is what it wrote.",
}


def _no_trace(wanted: str | None, folder: Path, traced: list[RunLine]) -> InvalidRequest:
    there = f"{len(traced)} traced runs" if folder.is_dir() else "no such folder"
    if wanted is not None:
        what = f"There is no file and no run {wanted!r}: {folder} has {there}."
        hint = "`keepwarm trace list` shows the runs; a trace is named by its run or its path."
    else:
        what, hint = f"No run has been traced yet: found {there} at {folder}.", HOW_TO_TRACE
    return InvalidRequest(what, hint=hint, folder=str(folder))


def events_of(path: Path) -> Iterator[Event]:
    """The events of a trace's file; one that was cut is read up to there, which is said.

    Raises:
        InvalidRequest: it is no trace.
        OutsideError: it cannot be read.
    """
    trace = TraceFile(path)
    with reading(path):
        yield from trace.events()
    _say_end(trace)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, a trace's file is read.

    Raises:
        InvalidRequest: it is no trace.
        OutsideError: it cannot be read.
    """
    try:
        with outside(path, "read"):
            yield
    except BadTrace as error:
        raise InvalidRequest(str(error), hint=WHICH_TRACES, file=str(error.file)) from error


def say_end_of(path: Path) -> None:
    """Say what is not read of a trace's file, for a command that does not read its events itself."""
    trace = TraceFile(path)
    with suppress(OSError):  # what reads it says so
        trace.look()
    _say_end(trace)


def _say_end(trace: TraceFile) -> None:
    file, said = trace.file, ""
    if trace.cut and trace.nuls:
        said = (
            f"{file} has NULs from line {trace.cut:,} on, as a machine that lost its power leaves them; it "
            "is read up to there."
        )
    elif trace.cut and is_open(marker_of_run(file)):
        said = f"{file} is still being recorded; it is read up to line {trace.cut:,}."
    elif trace.cut:
        said = f"{file} was cut in line {trace.cut}; it is read up to there."
    elif trace.behind != 0:
        what = "Bytes" if trace.behind is None else f"{trace.behind:,} bytes"
        said = f"{what} behind the end of {file} are not read."
    if said:
        say(f"keepwarm: {said}", err=True)


def _with_late_parts(trace: Path) -> Path:
    try:
        count, problems = add_late_parts(trace)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems = [f"parts of other processes cannot be added: {error}"]
        count = 0
    if count:
        say(
            f"keepwarm: {trace}: {counted(count, 'part')} of other processes of its run added.",
            err=True,
        )
    for problem in problems:
        say(f"keepwarm: {trace}: {problem}", err=True)
    return trace
