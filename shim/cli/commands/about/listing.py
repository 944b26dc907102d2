"""`keepwarm list`: the models that can be named, and whether they are loaded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

import click

from shim.cli.commands.about.model_facts import facts_of
from shim.cli.console.chosen_model import with_given_files
from shim.cli.console.context import read_config
from shim.cli.console.output import print_json, print_table, size
from shim.cli.console.running import ask_running
from shim.cli.console.said_lines import say_all
from shim.cli.console.shared_options import json_option

_KEYS: Final = (
    *("model", "role", "backend", "state", "pinned", "quantization", "file_bytes", "bytes"),
    *("context", "file", "url", "hf", "factory", "command", "problem"),
)


@click.command("list")
@json_option
@click.pass_context
def list_models(ctx: click.Context, *, as_json: bool) -> None:
    """List the models: what they are, and whether they are loaded.

    These are the models of the configuration, and the files that a running keeper was given by their
    path. Nothing is started, loaded or downloaded.

    Example: keepwarm list
    """
    status = ask_running("status")
    config = with_given_files(read_config(ctx, uses=()))
    found = [facts_of(config, name, status) for name in config.models]
    if as_json:
        print_json(
            {"file": config.file, "models": [{key: row[key] for key in _KEYS} for row in found]}
        )
        return
    columns = ("model", "role", "state", "type", "file size", "booked", "context", "source")
    print_table(columns, [_row(row) for row in found], right=("file size", "booked", "context"))
    for row in found:
        if row["problem"]:
            click.echo()
            say_all(row["problem"], before=f"{row['model']}: ")


def _row(row: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        row["model"],
        row["role"],
        shown_state(row),
        row["quantization"],
        size(row["file_bytes"]) if row["file_bytes"] else "",
        size(row["bytes"]) if row["bytes"] else "",
        row["context"],
        row["url"]
        or row["hf"]
        or row["factory"]
        or shlex.join(row["command"] or ())
        or row["file"],
    )


def shown_state(row: Mapping[str, Any]) -> str:
    """A model's state in words."""
    if row["problem"]:
        return "cannot be run"
    state = {"absent": "not loaded", "idle": "loaded", "leased": "in use"}.get(row["state"])
    return f"{state or row['state']}{', pinned' if row['pinned'] else ''}"
