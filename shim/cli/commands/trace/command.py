"""`keepwarm trace`: the runs that were traced, and opening a trace in Perfetto."""

from __future__ import annotations

import json
import os
import shlex
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from textwrap import indent
from typing import Any, Final, TextIO

import click

from budget.errors import InvalidRequest, OutsideError
from shim.cli.commands.trace.asked_in_sql import sql_command
from shim.cli.commands.trace.capture import capture_command
from shim.cli.commands.trace.prune import prune_command
from shim.cli.commands.trace.traced_runs import folder_option, runs_in, trace_path, traces_folder
from shim.cli.console.output import print_json, print_table, span
from shim.cli.console.shared_options import json_option
from traces import RunLine
from traces.chrome.perfetto import open_trace
from traces.reading.merged import merged, started_at
from traces.reading.models_of import models_of
from traces.reading.spans_of import spans_of
from traces.reading.stored_events import BadTrace, Event, TraceFile
from traces.reading.summary import REGRETTED_WITHIN_S, TraceSummary, summarise
from traces.runs import FILE_NAME


@click.group("trace")
def trace_group() -> None:
    """List, open, explain and compare the traces of runs."""


trace_group.add_command(capture_command)
trace_group.add_command(prune_command)
trace_group.add_command(sql_command)


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


@trace_group.command("summary")
@click.argument("trace", metavar="[FILE|RUN]", required=False)
@folder_option
@click.option(
    "--regretted-within",
    type=click.FloatRange(min=0),
    default=REGRETTED_WITHIN_S,
    show_default=True,
    help="An eviction is regretted if its model is loaded again within so many seconds.",
)
@click.option(
    "--models-out",
    type=click.Path(path_type=Path),
    help="Write the run's models to a file, for `keepwarm simulate --models`.",
)
@json_option
@click.pass_context
def summary_command(
    ctx: click.Context,
    trace: str | None,
    folder: Path | None,
    regretted_within: float,
    models_out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Say where a run's time went, what waited for what, and what would help.

    Example: keepwarm trace summary
    """
    place = folder or traces_folder(ctx)
    path = trace_path(trace, place)
    spans = spans_of(_events(path))
    summary = summarise(spans, regretted_within_s=regretted_within)
    if models_out is not None:
        with _new_file(models_out) as out:
            json.dump(models_of(spans), out, indent=1)
    if as_json:
        print_json(asdict(summary))
    else:
        _print_summary(summary)
        _print_simulate(path, place / FILE_NAME, models_out)


@trace_group.command("diff")
@click.argument("first", metavar="FILE|RUN")
@click.argument("second", metavar="FILE|RUN")
@folder_option
@json_option
@click.pass_context
def diff_command(
    ctx: click.Context, first: str, second: str, folder: Path | None, *, as_json: bool
) -> None:
    """Compare two runs, part by part and model by model."""
    place = folder or traces_folder(ctx)
    both = [summary_of(trace_path(one, place), REGRETTED_WITHIN_S) for one in (first, second)]
    if as_json:
        print_json({"first": asdict(both[0]), "second": asdict(both[1])})
        return
    rows = [(name, *_compared(*(getattr(one, key) for one in both))) for name, key in PARTS]
    for model in dict.fromkeys([*both[0].models, *both[1].models]):
        load_s = [one.models[model].load_s if model in one.models else 0.0 for one in both]
        rows.append((f"loads of {model}", *_compared(*load_s)))
    for name in ("evictions", "regretted"):
        values = [getattr(one, name) for one in both]
        rows.append((name, str(values[0]), str(values[1]), f"{values[1] - values[0]:+d}"))
    print_table(("", "first", "second", "change"), rows, right=("first", "second", "change"))


@trace_group.command("merge")
@click.argument("traces", metavar="FILE|RUN...", nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file that is written.",
)
@folder_option
@click.pass_context
def merge_command(
    ctx: click.Context, traces: tuple[str, ...], output: Path, folder: Path | None
) -> None:
    """Put several traces into one file, on one clock: the processes of one run, or runs side by side."""
    place = folder or traces_folder(ctx)
    paths = [trace_path(one, place) for one in traces]
    clocks = [started_at(_events(path)) for path in paths]
    with _new_file(output) as out:
        separator = "[\n"
        for event in merged([_events(path) for path in paths], clocks):
            out.write(separator + json.dumps(event))
            separator = ",\n"
        out.write("\n]\n" if separator == ",\n" else "[\n]\n")
    click.echo(f"{output}: {len(paths)} traces.")


PARTS: Final = (
    ("wall", "wall_s"),
    ("queue", "queue_s"),
    ("cold load", "cold_load_s"),
    ("hidden load", "hidden_load_s"),
    ("prompt", "prompt_s"),
    ("generate", "generate_s"),
    ("harness", "harness_s"),
)


def summary_of(path: Path, regretted_within_s: float) -> TraceSummary:
    """The summary of a trace's file; one that was cut is read up to there, which is said.

    Raises:
        InvalidRequest: it is no trace.
        OutsideError: it cannot be read.
    """
    return summarise(spans_of(_events(path)), regretted_within_s=regretted_within_s)


def _events(path: Path) -> Iterator[Event]:
    trace = TraceFile(path)
    try:
        yield from trace.events()
    except BadTrace as error:
        raise InvalidRequest(
            str(error), hint="`keepwarm trace list` shows the traces of runs.", file=str(path)
        ) from error
    except OSError as error:
        raise OutsideError(f"{path} cannot be read: {error.strerror or error}.") from error
    if trace.cut:
        click.echo(
            f"keepwarm: {path} was cut in line {trace.cut}; it is read up to there.", err=True
        )


@contextmanager
def _new_file(path: Path) -> Iterator[TextIO]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise InvalidRequest(f"{path} is there already.", hint="Name another file.") from error
    except OSError as error:
        raise OutsideError(f"{path} cannot be written: {error.strerror or error}.") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            yield out
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _print_summary(summary: TraceSummary) -> None:
    whole = summary.wall_s or 1.0
    parts = [(name, float(getattr(summary, key))) for name, key in PARTS]
    rows = [(name, span(seconds), f"{seconds / whole:.0%}") for name, seconds in parts]
    print_table(("part", "time", "of wall"), rows, right=("time", "of wall"))
    models = [
        (
            name, str(m.requests), str(m.cold), str(m.loads), span(m.load_s),
            "-" if m.tokens_per_s is None else f"{m.tokens_per_s:.1f}",
            span(m.ttft_p50_s), span(m.ttft_p95_s),
        )
        for name, m in summary.models.items()
    ]  # fmt: skip
    columns = ("model", "requests", "cold", "loads", "load", "tokens/s", "first token p50", "p95")
    print_table(columns, models, right=columns[1:])
    for wait in summary.waits:
        click.echo(f"{wait.request} of {wait.model} waited {span(wait.waited_s)} for {wait.cause}.")
    evictions = f"{summary.evictions} evictions, {summary.regretted} of them regretted"
    click.echo(f"{evictions}; {summary.failed} requests failed.")
    for advice in summary.advice:
        click.echo(f"\n{advice.text}:\n{indent(advice.lines, '    ')}")


def _print_simulate(trace: Path, runs: Path, models: Path | None) -> None:
    """The command that says what another budget or policy would have cost."""
    described = models or Path("models.json")
    if models is None:
        first = ["keepwarm", "trace", "summary", str(trace), "--models-out", str(described)]
        lines = [shlex.join(first)]
    else:
        lines = []
    replay = ["keepwarm", "simulate", "--trace", str(runs), "--models", str(described)]
    lines.append(f"{shlex.join(replay)} --budget BYTES")
    click.echo("\nWhat another budget or policy would have cost:")
    click.echo(indent("\n".join(lines), "    "))


def _compared(first: float, second: float) -> tuple[str, str, str]:
    ratio = f" ({second / first:.2f}x)" if first > 0 else ""
    return span(first), span(second), f"{second - first:+.3f} s{ratio}"


def _no_browser(_url: str) -> bool:
    return False


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
