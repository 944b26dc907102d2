"""`keepwarm trace`: the runs that were traced, and opening a trace in Perfetto."""

from __future__ import annotations

import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from budget.errors import InvalidRequest, OutsideError
from shim.cli.console.context import config_path
from shim.cli.console.output import print_json, print_table, span
from shim.cli.console.shared_options import json_option
from shim.config import load_config
from traces import RunLine, default_directory, read_runs
from traces.chrome.perfetto import open_trace
from traces.runs import FILE_NAME

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="The folder of the traces. Default: [trace] folder, or the user's state folder.",
)


@click.group("trace")
def trace_group() -> None:
    """List and open the traces of runs."""


@trace_group.command("list")
@folder_option
@click.option(
    "-n", "--last", type=click.IntRange(min=1), default=20, show_default=True, help="How many runs."
)
@json_option
@click.pass_context
def list_command(ctx: click.Context, folder: Path | None, last: int, *, as_json: bool) -> None:
    """List the last runs, oldest first."""
    place = folder or traces_folder(ctx)
    found, damaged = runs_in(place)
    for error in damaged:
        click.echo(f"keepwarm: {error}", err=True)
    if as_json:
        print_json({"folder": str(place), "runs": [_run_json(run) for run in found[-last:]]})
    elif not found:
        click.echo(f"No run was traced in {place}.")
    else:
        rows = [_row(run) for run in found[-last:]]
        columns = ("run", "by", "status", "took", "requests", "loads", "evictions", "trace")
        print_table(columns, rows, right=("took", "requests", "loads", "evictions"))


@trace_group.command("open")
@click.argument("trace", metavar="[FILE|RUN]", required=False)
@folder_option
@click.option("--no-browser", is_flag=True, help="Print the address and open no browser.")
@click.pass_context
def open_command(
    ctx: click.Context, trace: str | None, folder: Path | None, *, no_browser: bool
) -> None:
    """Open a trace, by default the last one, in Perfetto's UI, which this machine serves."""
    path = trace_path(trace, folder or traces_folder(ctx))
    browse = _no_browser if no_browser else webbrowser.open
    try:
        open_trace(path, say=click.echo, browse=browse)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise OutsideError(str(error)) from error


def _no_browser(_url: str) -> bool:
    return False


def traces_folder(ctx: click.Context) -> Path:
    """Where runs are kept, by the configuration."""
    configured = load_config(config_path(ctx), uses=("trace",)).trace.folder
    return configured or default_directory()


def runs_in(folder: Path) -> tuple[list[RunLine], list[ValueError]]:
    """The runs of a folder, oldest first, and the lines that cannot be read."""
    path = folder / FILE_NAME
    lines = list(read_runs(path)) if path.exists() else []
    found = [line for line in lines if isinstance(line, RunLine)]
    return found, [line for line in lines if isinstance(line, ValueError)]


def trace_path(wanted: str | None, folder: Path) -> Path:
    """The file of a trace by its path or its run; the last trace where neither is given.

    Raises:
        InvalidRequest: no run was traced, or none has that name.
    """
    if wanted is not None and Path(wanted).exists():
        return Path(wanted)
    traced = [run for run in runs_in(folder)[0] if run.trace is not None]
    for run in reversed(traced):
        if wanted in (None, run.run_id):
            return Path(str(run.trace))
    what = f"There is no file or run {wanted!r}" if wanted else "No run was traced"
    raise InvalidRequest(
        f"{what} in {folder}.", hint="`keepwarm trace list` shows the runs.", folder=str(folder)
    )


def _run_json(run: RunLine) -> dict[str, Any]:
    data = asdict(run)
    return {**data, "requests": len(run.requests), "problems": list(run.problems)}


def _row(run: RunLine) -> tuple[object, ...]:
    status = run.status if run.error_type is None else f"{run.status} ({run.error_type})"
    return (
        run.run_id,
        run.service,
        status,
        span(run.seconds),
        len(run.requests),
        run.loads,
        run.evictions,
        run.trace,
    )
