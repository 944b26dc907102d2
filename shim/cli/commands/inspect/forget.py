"""`keepwarm forget`: what was learned of a model's bytes is deleted, so that its estimate counts again."""

from __future__ import annotations

import click

from backends.gguf import read_header
from budget.errors import InvalidRequest
from shim.cli.console.chosen_model import choose
from shim.cli.console.output import print_json
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option, model_argument
from shim.keeper.catalog.corrections import learned_store
from shim.placement.requested import local_path


@click.command()
@model_argument
@json_option
@click.pass_context
def forget(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Forget the bytes that earlier loads of a model were found to take.

    MODEL is a name of the configuration, or the path of a GGUF file. Its estimate counts again, for all
    contexts and slots; a running keeper takes that over with its next request. `keepwarm inspect FILE`
    shows what was learned, and when.

    Example: keepwarm forget writer
    """
    chosen = choose(ctx, model, uses=())
    if not chosen.entry.is_gguf:
        raise InvalidRequest(
            f"{chosen.model} is no GGUF file that runs here: no estimate of it was corrected.",
            hint="Name a model with a path or hf.",
        )
    count = learned_store().forget(read_header(local_path(chosen.entry)).identity)
    if as_json:
        print_json({"model": chosen.model, "forgotten": count})
    elif count:
        figures = "1 figure is" if count == 1 else f"{count} figures are"
        say(f"{figures} forgotten of {chosen.model}.")
    else:
        say(f"Nothing was learned of {chosen.model}.")
