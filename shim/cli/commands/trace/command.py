"""`keepwarm trace`: the runs that were traced, and opening a trace in Perfetto."""

from __future__ import annotations

import json
import shlex
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from budget.errors import InvalidRequest, OutsideError
from shim.cli.commands.trace.asked_in_sql import sql_command
from shim.cli.commands.trace.capture import capture_command
from shim.cli.commands.trace.in_force import file_of, in_force
from shim.cli.commands.trace.merge import merge_command, new_file
from shim.cli.commands.trace.prune import prune_command
from shim.cli.commands.trace.traced_runs import (
    HOW_TO_TRACE,
    WHICH_TRACES,
    events_of,
    folder_option,
    reading,
    runs_in,
    say_end_of,
    trace_path,
    traces_folder,
)
from shim.cli.console.context import config_or_defaults
from shim.cli.console.output import counted, print_json, print_table, span
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.config import Config
from traces import RunLine
from traces.chrome.perfetto import open_trace
from traces.reading.models_of import models_of
from traces.reading.spans_of import Spans, spans_of
from traces.reading.summary import REGRETTED_WITHIN_S, TraceSummary, summarise
from traces.reading.unended import NO_LINE, NOT_ENDED, RECORDING
from traces.runs import FILE_NAME


@click.group("trace")
def trace_group() -> None:
    """List, open, explain and compare the traces of runs."""


trace_group.add_command(capture_command)
trace_group.add_command(merge_command)
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
    place = traces_folder(ctx, folder)
    found, damaged = runs_in(place)
    for error in damaged:
        say(f"keepwarm: {error}", err=True)
    if as_json:
        print_json({"folder": place, "runs": [_run_json(run) for run in found[-last:]]})
    elif not found:
        say(f"No run has been traced yet in {place}. {HOW_TO_TRACE}")
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
    path = trace_path(trace, traces_folder(ctx, folder))
    browse = (lambda _url: False) if no_browser else webbrowser.open
    try:
        with reading(path):
            say_end_of(path)
            open_trace(path, say=say, browse=browse)
    except ModuleNotFoundError as error:
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
    place = traces_folder(ctx, folder)
    path = trace_path(trace, place)
    spans = spans_in(path)
    config = config_or_defaults(ctx, uses=("trace",))
    summary = summarise(spans, regretted_within_s=regretted_within, force=in_force(config))
    if models_out is not None:
        with new_file(models_out) as out:
            json.dump(models_of(spans), out, indent=1)
    if as_json:
        print_json(asdict(summary))
    else:
        _print_summary(summary, config)
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
    place = traces_folder(ctx, folder)
    both = [summarise(spans_in(trace_path(one, place))) for one in (first, second)]
    if as_json:
        print_json({"first": asdict(both[0]), "second": asdict(both[1])})
        return
    rows = [(name, *_compared(*(getattr(one, key) for one in both))) for name, key in PARTS]
    for model in dict.fromkeys([*both[0].models, *both[1].models]):
        load_s = [one.models[model].load_s if model in one.models else 0.0 for one in both]
        rows.append((f"loads of {model}", *_compared(*load_s)))
    for name in ("evictions", "regretted"):
        values = [getattr(one, name) for one in both]
        rows.append((name, *values, f"{values[1] - values[0]:+d}"))
    print_table(("", "first", "second", "change"), rows, right=("first", "second", "change"))


PARTS: Final = (
    ("wall", "wall_s"),
    ("queue", "queue_s"),
    ("cold load", "cold_load_s"),
    ("hidden load", "hidden_load_s"),
    ("prompt", "prompt_s"),
    ("generate", "generate_s"),
    ("harness", "harness_s"),
)


def spans_in(path: Path) -> Spans:
    """The spans of a trace's file; one that was cut is read up to there, which is said.

    Raises:
        InvalidRequest: it is no trace, or has no run in it.
        OutsideError: it cannot be read.
    """
    spans = spans_of(events_of(path))
    if not spans.of_a_run:
        raise InvalidRequest(
            f"{path} has no run in it: none of its {spans.events:,} events is keepwarm's.",
            hint=WHICH_TRACES,
            file=str(path),
        )
    for problem in spans.problems:
        say(f"keepwarm: {path} lacks something: {problem}", err=True)
    return spans


def _print_summary(summary: TraceSummary, config: Config) -> None:
    whole = summary.wall_s or 1.0
    parts = [(name, float(getattr(summary, key))) for name, key in PARTS]
    rows = [(name, span(seconds), f"{seconds / whole:.0%}") for name, seconds in parts]
    print_table(("part", "time", "of wall"), rows, right=("time", "of wall"))
    models = [
        (
            name, m.requests, m.cold, m.loads, span(m.load_s),
            "-" if m.tokens_per_s is None else f"{m.tokens_per_s:.1f}",
            span(m.ttft_p50_s) or "-", span(m.ttft_p95_s) or "-",
        )
        for name, m in summary.models.items()
    ]  # fmt: skip
    columns = ("model", "requests", "cold", "loads", "load", "tokens/s", "first token p50", "p95")
    if models:
        print_table(columns, models, right=columns[1:])
    for wait in summary.waits:
        say(f"{wait.request} of {wait.model} waited {span(wait.waited_s)} for {wait.cause}.")
    regretted = f", {summary.regretted} of them regretted" if summary.evictions else ""
    say(
        f"{counted(summary.evictions, 'eviction')}{regretted}; {counted(summary.failed, 'request')} failed."
    )
    for advice in summary.advice:
        where = f"set in {advice.section} of {file_of(advice, config)}:" if advice.section else ""
        click.echo()
        say(f"{advice.text}{'' if where else ':'}")
        if where:
            say(where)
        for line in advice.lines.split("\n"):
            say(f"    {line}")


def _print_simulate(trace: Path, runs: Path, models: Path | None) -> None:
    """The command that says what another budget or policy would have cost."""
    described = str(models or "models.json")
    click.echo("\nWhat another budget or policy would have cost:")
    if models is None:
        first = ["keepwarm", "trace", "summary", str(trace), "--models-out", described]
        say(f"    {shlex.join(first)}")
    replay = ["keepwarm", "simulate", "--trace", str(runs), "--models", described]
    say(f"    {shlex.join(replay)} --budget BYTES")


def _compared(first: float, second: float) -> tuple[str, str, str]:
    ratio = f" ({second / first:.2f}x)" if first > 0 else ""
    return span(first), span(second), f"{second - first:+.3f} s{ratio}"


def _run_json(run: RunLine) -> dict[str, Any]:
    count = None if _unended(run) else len(run.requests)
    return {**asdict(run), "requests": count, "problems": list(run.problems)}


def _row(run: RunLine) -> tuple[object, ...]:
    figures = (len(run.requests), run.loads, run.evictions)
    status = run.status if run.error_type is None else f"{run.status} ({run.error_type})"
    return (
        run.run_id,
        run.service,
        status,
        span(run.seconds),
        *(("-", "-", "-") if _unended(run) else figures),
        run.trace,
    )


def _unended(run: RunLine) -> bool:
    """Whether a run has no line, so that its figures are in its trace alone."""
    return run.status in (RECORDING, NOT_ENDED, NO_LINE)
