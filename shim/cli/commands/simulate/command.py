"""`keepwarm simulate`: a trace replayed under several policies, beside the offline optimum."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from budget.errors import ConfigError, InvalidRequest
from budget.eviction.policies import DEFAULT_POLICY
from budget.simulation import (
    COLUMNS,
    Arrival,
    Comparison,
    SimulatedModel,
    Trial,
    compare,
    parse_models,
    parse_rows,
    parse_runs,
)
from shim.cli.commands.simulate.plot import draw, matplotlib_parts
from shim.cli.console.output import StatusLine, print_json, print_table, size, span
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.config.schema.values import parse_size

JSON_FIGURES: Final = (
    *("loads", "load_seconds", "hidden_load_seconds", "evictions"),
    *("wait_p50_s", "wait_p95_s", "wait_p99_s", "wait_max_s"),
)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command()
@click.option(
    "--trace", required=True, type=FILE, help="The requests, as a CSV file or a runs.jsonl."
)
@click.option("--models", required=True, type=FILE, help="The models, as TOML or JSON.")
@click.option("--budget", required=True, help='Bytes of each device: a number, "24GB", "16GiB".')
@click.option(
    "--devices", type=click.IntRange(1), default=1, show_default=True, help="How many devices."
)
@click.option(
    "--policy", default=f"{DEFAULT_POLICY},lru", show_default=True, help="Policies: NAME[,NAME...]."
)
@click.option(
    "--declare",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="How many coming requests each policy knows in advance.",
)
@click.option(
    "--replay",
    type=click.Choice(["sequential", "timed"]),
    default="sequential",
    show_default=True,
    help="Send one request at a time, or each request at its arrival time.",
)
@click.option(
    "--optimum/--no-optimum",
    default=True,
    show_default=True,
    help="Compute the offline optimum, or a bound of it where there are many models.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw residency over time and the comparison into a PNG file.",
)
@json_option
def simulate(
    *,
    trace: Path,
    models: Path,
    budget: str,
    devices: int,
    policy: str,
    declare: int,
    replay: Any,
    optimum: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Replay a trace of requests under several eviction policies.

    The decisions are those of the keeper's own core. A trace has the columns arrival_s, model,
    prompt_tokens and output_tokens. The models file is {"models": [{"name", "bytes", "load_fixed_s",
    "load_bandwidth_bytes_per_s", "prompt_tokens_per_s", "decode_tokens_per_s", "slots", "pinned"}]};
    the last four keys are optional.
    """
    if plot is not None:
        # Minutes of work follow, so a mistake has to show now.
        matplotlib_parts()
        _check_writable(plot)
    names = list(dict.fromkeys(name.strip() for name in policy.split(",") if name.strip()))
    described = {model.name: model for model in read_models(models)}
    arrivals = described_only(read_trace(trace), described)
    trial = Trial(
        arrivals, described, read_budget(budget), devices, declare, replay, plot is not None
    )
    found = _compare(trial, names, optimum=optimum)
    if plot is not None:
        draw(found, trial, plot)
    if as_json:
        print_json(to_json(found, trial, trace))
    else:
        _print(found, trial)


def _compare(trial: Trial, names: Sequence[str], *, optimum: bool) -> Comparison:
    """`compare`, with a status line on a terminal. A line on stderr counts the requests that never fit."""
    line, count = StatusLine(), len(trial.arrivals)

    def tell(what: str, arrived: int) -> None:
        share = f": {arrived:,} of {count:,} requests ({arrived / count:.0%})" if arrived else ""
        line.show(f"simulating {what}{share}", arrived / count if arrived else None)

    try:
        found = compare(trial, names, tell, with_optimum=optimum)
    finally:
        line.clear()
    large = {m.name for m in trial.models.values() if m.bytes > trial.budget_bytes}
    if refused := [a.model for a in trial.arrivals if a.model in large]:
        say(
            f"keepwarm: {len(refused)} of {count} requests are for models larger than a device: "
            f"{', '.join(sorted(set(refused))[:5])}; they are denied.",
            err=True,
        )
    return found


def described_only(
    arrivals: Sequence[Arrival], models: Mapping[str, SimulatedModel]
) -> list[Arrival]:
    """The requests for described models. A line on stderr counts the other requests.

    Raises:
        InvalidRequest: there are requests, and none of them is for a described model.
    """
    kept = [arrival for arrival in arrivals if arrival.model in models]
    others = {arrival.model for arrival in arrivals} - models.keys()
    if arrivals and not kept:
        raise InvalidRequest(
            f"None of the trace's {len(others)} models is described: {sorted(others)[:3]}.",
            hint="The names in the trace and in --models must be the same.",
        )
    if others:
        say(
            f"keepwarm: {len(arrivals) - len(kept)} of {len(arrivals)} requests are for "
            f"{len(others)} models that --models does not describe; they are left out.",
            err=True,
        )
    return kept


def read_budget(text: str) -> int:
    """Bytes of one device.

    Raises:
        InvalidRequest: it is not a number of bytes.
    """
    try:
        value = int(text) if text.isdecimal() else parse_size(text).resolve(0)
    except ValueError as error:
        raise InvalidRequest(f"--budget {text!r}: {error}.") from None
    if value < 1:
        raise InvalidRequest(f"--budget {text!r}: bytes above 0 are needed, not a share.")
    return value


def read_models(path: Path) -> list[SimulatedModel]:
    """The models of a TOML (`.toml`) or JSON file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: {error}.") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path}: found a {type(data).__name__}, not a table.")
    return parse_models(data, path.name)


def read_trace(path: Path) -> list[Arrival]:
    """The arrivals of a CSV file, or of a `runs.jsonl` (by the file's ending)."""
    try:
        # Spreadsheets put a byte order mark first.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".jsonl":
                return parse_runs([_run(line, path) for line in file if line.strip()], path.name)
            rows = csv.DictReader(file)
            if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
                raise InvalidRequest(
                    f"{path}: its first line names no column {', '.join(missing)}.",
                    hint=f"Needed, with commas between them: {', '.join(COLUMNS)}.",
                )
            return parse_rows(rows, path.name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"{path}: {error}.") from None


def _run(line: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(line)
        started_s = datetime.fromisoformat(found["started"]).timestamp()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidRequest(
            f"{path}: {type(error).__name__}: {error} in {line[:60]!r}.",
            hint="A line of runs.jsonl is one run with `started` and `requests`.",
        ) from None
    return {**found, "started_s": started_s}


def to_json(found: Comparison, trial: Trial, trace: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "trace": trace,
        "requests": len(trial.arrivals),
        "budget_bytes": trial.budget_bytes,
        "policies": {
            name: {figure: getattr(result.summary, figure) for figure in JSON_FIGURES}
            for name, result in found.results.items()
        },
        "optimum": None
        if found.optimum_seconds is None
        else {"load_seconds": found.optimum_seconds, "exact": found.exact},
    }


def _print(found: Comparison, trial: Trial) -> None:
    label = "optimum" if found.exact or found.optimum_seconds is None else "lower bound"
    about = (
        f"{len(trial.arrivals)} requests, {len(trial.models)} models, {trial.devices} x "
        f"{size(trial.budget_bytes)}, {trial.mode}"
    )
    if found.optimum_seconds is not None:
        about += f"; {label} {found.optimum_seconds:.1f} load seconds"
        about += "" if found.exact else " (by relaxation; the optimum is not below it)"
    say(about)
    click.echo()
    numbers = (
        *("loads", "load s", "hidden s", f"x {label}", "p50 wait", "p95 wait", "p99 wait"),
        *("worst wait", "evictions", "moved", "denied"),
    )
    print_table(("policy", *numbers), _rows(found), right=numbers)


def _rows(found: Comparison) -> Sequence[Sequence[object]]:
    rows = []
    for name, result in found.results.items():
        figures = result.summary
        waits = (figures.wait_p50_s, figures.wait_p95_s, figures.wait_p99_s, figures.wait_max_s)
        ratio = found.ratio(name)
        rows.append(
            (
                name,
                figures.loads,
                f"{figures.load_seconds:.1f}",
                f"{figures.hidden_load_seconds:.1f}",
                "" if math.isinf(ratio) else f"{ratio:.3f}",
                *(span(wait_s) for wait_s in waits),
                figures.evictions,
                size(figures.moved_bytes),
                figures.denied,
            )
        )
    return rows


def _check_writable(path: Path) -> None:
    """Make the picture's folder.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}.", hint="Choose another file for --plot."
        ) from error
