"""`keepwarm trace capture`: the last minutes of the keeper, written as a trace after they happened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from budget.errors import InvalidRequest, KeeperUnavailable, OutsideError
from shim.calls.tracing import load_spans, trace_history
from shim.cli.commands.trace.times import duration
from shim.cli.commands.trace.traced_runs import folder_option
from shim.cli.console.context import read_config
from shim.cli.console.output import counted, print_json, span
from shim.cli.console.running import ask_running
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.config import TraceSection
from shim.paths import runtime_dir
from traces import RequestRecord, RunTrace, default_directory, names

_USUAL: Final = TraceSection()


@click.command("capture")
@click.option(
    "--last",
    "last_s",
    callback=duration,
    default="5m",
    show_default=True,
    metavar="TIME",
    help="How far back, such as 90s or 5m.",
)
@folder_option
@json_option
@click.pass_context
def capture_command(
    ctx: click.Context, last_s: float, folder: Path | None, *, as_json: bool
) -> None:
    """Write what the keeper did in the last minutes as a trace, after it happened.

    The keeper remembers it where the configuration has `trace = "ring"` in [keeper].

    Example: keepwarm trace capture --last 5m
    """
    told = ask_running("capture", last_s=last_s)
    if told is None:
        raise KeeperUnavailable(
            f"No keeper runs in {runtime_dir()}, and what an earlier one did is gone with it.",
            hint='The next one remembers with `trace = "ring"` in [keeper]: `keepwarm keeper start`.',
        )
    seconds = (told["until_ns"] - told["since_ns"]) / 1e9
    if not _has_something(told):
        raise InvalidRequest(
            f"Nothing was in the last {span(seconds)}: no request, load or eviction ended then. No file "
            "was written.",
            hint="Look further back with --last. The keeper remembers [keeper] trace_last at most, and "
            "nothing from before it began to.",
        )
    section = read_config(ctx, uses=("trace",)).trace
    run = written(told, folder or section.folder or default_directory(), section)
    if run.problems:
        what = "cannot be written" if run.trace_path is None else "is not whole"
        raise OutsideError(
            f"The trace {what}: {'; '.join(run.problems)}.",
            hint="The keeper still remembers it: capture again once there is room.",
        )
    count = len(told["requests"])
    if as_json:
        print_json({"trace": run.trace_path, "seconds": seconds, "requests": count})
        return
    say(f"{run.trace_path}: {counted(count, 'request')} in {span(seconds)}.")
    say(f"Show it: keepwarm trace open {run.run_id}; explain it: keepwarm trace summary")


def _has_something(told: Mapping[str, Any]) -> bool:
    """Whether a trace of this would show more than the books."""
    history = told["history"]
    ended = (row["end_ns"] for kind in ("loads", "evictions", "stagings") for row in history[kind])
    return bool(told["requests"] or history.get("notes")) or any(ended)


def written(told: dict[str, Any], folder: Path, section: TraceSection = _USUAL) -> RunTrace:
    """A run with all that the keeper told, written and closed; its file is as `[trace]` says."""
    run = RunTrace(
        directory=folder,
        service="keeper",
        gzip=section.compress,
        max_bytes=section.most_bytes,
        current=False,
        started_ns=told["since_ns"],
    )
    with run:
        waited_for = {row.get("load_id") for row in told["requests"]}
        for row in told["history"]["loads"]:
            if row["load_id"] in waited_for and row["end_ns"]:
                for load in load_spans(row, hidden=False):
                    run.load(load)
        for row in sorted(told["requests"], key=lambda row: row["end_ns"]):
            run.request(record_of(row))
        trace_history(run, told["history"])
    return run


def record_of(row: dict[str, Any]) -> RequestRecord:
    """A request as the keeper saw it; one that was denied has no more than its times and its error."""
    granted_ns = row.get("granted_ns")
    return RequestRecord(
        request_id=row["request_id"],
        model=row["model"],
        engine=row.get("engine", ""),
        queued_ns=row["arrived_ns"],
        end_ns=row["end_ns"],
        slot=row.get("slot"),
        granted_ns=granted_ns,
        sent_ns=granted_ns,
        first_token_ns=row.get("first_token_ns"),
        prompt_tokens=row.get("prompt_tokens"),
        cached_tokens=row.get("cached_tokens"),
        completion_tokens=row.get("output_tokens"),
        prompt_ms=row.get("prompt_ms"),
        predicted_ms=row.get("predicted_ms"),
        error=row["error"],
        waited_for_load=row.get("load_id"),
        cold=row.get("cold", False),
        operation=row.get("operation", "chat"),
        waited_for=row.get("waited_for", ""),
        attributes={names.CLIENT: row["client_id"]},
    )
