"""Where the traces of runs are, and which one a command means."""

from __future__ import annotations

from pathlib import Path

import click

from budget.errors import InvalidRequest, OutsideError
from shim.cli.console.context import config_path
from shim.config import load_config
from traces import RunLine, default_directory, read_runs
from traces.processes.late_parts import add_late_parts
from traces.runs import FILE_NAME

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The folder of the traces. Default: [trace] folder, or the user's state folder.",
)


def traces_folder(ctx: click.Context) -> Path:
    """Where runs are kept, by the configuration."""
    configured = load_config(config_path(ctx), uses=("trace",)).trace.folder
    return configured or default_directory()


def runs_in(folder: Path) -> tuple[list[RunLine], list[ValueError]]:
    """The runs of a folder, oldest first, and the lines that cannot be read.

    Raises:
        OutsideError: the file cannot be read.
    """
    path = folder / FILE_NAME
    try:
        lines = list(read_runs(path)) if path.exists() else []
    except OSError as error:
        raise OutsideError(f"{path} cannot be read: {error.strerror or error}.") from error
    found = [line for line in lines if isinstance(line, RunLine)]
    return found, [line for line in lines if isinstance(line, ValueError)]


def trace_path(wanted: str | None, folder: Path) -> Path:
    """The file of a trace by its path or its run; the last trace where neither is given.

    What processes of the run wrote that were too late for it is added to the file, and said.

    Raises:
        InvalidRequest: no run was traced, or none has that name.
    """
    if wanted is not None and Path(wanted).exists():
        return _with_late_parts(Path(wanted))
    traced = [run for run in runs_in(folder)[0] if run.trace is not None]
    for run in reversed(traced):
        if wanted in (None, run.run_id):
            return _with_late_parts(Path(str(run.trace)))
    what = f"There is no file or run {wanted!r}" if wanted else "No run was traced"
    raise InvalidRequest(
        f"{what} in {folder}.", hint="`keepwarm trace list` shows the runs.", folder=str(folder)
    )


def _with_late_parts(trace: Path) -> Path:
    try:
        count, problems = add_late_parts(trace)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems = [f"parts of other processes cannot be added: {error}"]
        count = 0
    if count:
        parts = "1 part" if count == 1 else f"{count} parts"
        click.echo(f"keepwarm: {trace}: {parts} of other processes of its run added.", err=True)
    for problem in problems:
        click.echo(f"keepwarm: {trace}: {problem}", err=True)
    return trace
