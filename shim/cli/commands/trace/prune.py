"""`keepwarm trace prune`: old traces, removed."""

from __future__ import annotations

import time
from pathlib import Path

import click

from budget.errors import InvalidRequest
from shim.cli.commands.trace.times import age
from shim.cli.commands.trace.traced_runs import folder_option, traces_folder
from shim.cli.console.failure import outside
from shim.cli.console.output import print_json, size
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.config.schema.values import parse_size
from traces.pruning import TracesKept, prune, to_prune


def _bytes(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_size(value).resolve(0)
    except ValueError as error:
        raise click.BadParameter(
            f"found {value}: {error}. Allowed: bytes, or a text such as 500MB or 2GiB."
        ) from None


@click.command("prune")
@click.option("--keep", type=click.IntRange(min=0), help="Keep so many of the last traces.")
@click.option("--max-age", callback=age, metavar="TIME", help="Keep none older, such as 30d.")
@click.option("--max-bytes", callback=_bytes, metavar="SIZE", help="Keep so many bytes, as 2GiB.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; say what would go.")
@folder_option
@json_option
@click.pass_context
def prune_command(
    ctx: click.Context,
    keep: int | None,
    max_age: float | None,
    max_bytes: int | None,
    folder: Path | None,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove old traces, with their lines in the list of runs. Runs that are still written stay.

    Example: keepwarm trace prune --max-age 30d --max-bytes 2GiB
    """
    kept = TracesKept(keep, max_age, max_bytes)
    if kept == TracesKept():
        raise InvalidRequest(
            "Nothing says which traces may go.", hint="Give --keep, --max-age or --max-bytes."
        )
    place = traces_folder(ctx, folder)
    with outside(place, "pruned"):
        going = to_prune(place, kept, time.time())
        if not dry_run:
            prune(place, going)
    n_bytes = sum(one.n_bytes for one in going)
    if as_json:
        files = [one.path for one in going]
        print_json({"folder": place, "removed": files, "bytes": n_bytes, "dry_run": dry_run})
    else:
        would = "would be removed" if dry_run else "were removed"
        say(f"{len(going)} traces of {size(n_bytes)} {would} from {place}.")
