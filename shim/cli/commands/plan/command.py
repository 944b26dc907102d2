"""`keepwarm plan`: what would be resident, with which bytes and why."""

from __future__ import annotations

import click

from shim.cli.commands.plan.preview import Preview, make_plan
from shim.cli.console.context import config_of
from shim.cli.console.output import print_json, print_table, size
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option


@click.command()
@json_option
@click.pass_context
def plan(ctx: click.Context, *, as_json: bool) -> None:
    """Show what would be resident, on which device, and why.

    The command computes this from the configuration. It asks no keeper, and it loads and downloads
    nothing.
    """
    found = make_plan(config_of(ctx))
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: Preview) -> None:
    for view in found.devices:
        say(
            f"{view.device}: limit {size(view.limit_bytes)}, {size(view.reserved_bytes)} reserved, "
            f"{size(view.free_bytes)} free"
        )
    click.echo()
    rows = [
        (
            row.name,
            row.role,
            "yes" if row.pinned else "",
            "yes" if row.resident else "no",
            row.kind or "",
            row.where,
            row.placement.args.n_gpu_layers if row.placement else "",
            size(row.placement.total_bytes) if row.placement else "",
            row.reason,
        )
        for row in found.models
    ]
    columns = (
        "model",
        "role",
        "pinned",
        "resident",
        "placed",
        "device",
        "gpu layers",
        "bytes",
        "why",
    )
    print_table(columns, rows, right=("gpu layers", "bytes"))
