"""`keepwarm logs`: the log of a model's engine, or the keeper's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from budget.errors import KeepwarmError, UnknownModel, error_from_wire
from shim.cli.commands.keeper import FOLLOW_EVERY_S, print_keeper_log
from shim.cli.console.chosen_model import choose
from shim.cli.console.failure import tell
from shim.cli.console.running import ask_running
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import complete_model, log_options
from shim.wire.fingerprint import called


@click.command()
@click.argument("model", required=False, shell_complete=complete_model)
@log_options
@click.pass_context
def logs(ctx: click.Context, model: str | None, lines: int, *, follow: bool) -> None:
    """Print the end of the log of a model's engine; without MODEL, of the keeper's log.

    The keeper has the last 400 lines of each engine that runs, and the last lines of one that failed.

    Example: keepwarm logs writer --follow
    """
    if model is None:
        print_keeper_log(lines, follow=follow)
        return
    chosen = choose(ctx, model, uses=())
    if chosen.entry.remote:
        say(f"{model} runs at {chosen.entry.url}; its log is there.", err=True)
        return
    said = called(chosen.config, chosen.model)
    first = _asked(said)
    if first is None or first["generation"] is None:
        _say_why_none(ctx, chosen.model, first)
        if not follow:
            return
    for line in (first["lines"] if first else [])[-lines:] if lines else []:
        click.echo(line)
    if follow:
        for line in _additions(said, first):
            click.echo(line)


def _asked(said: str, seen: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
    """The keeper's answer; None where no keeper runs. `said`: what the keeper is asked for."""
    fields = {"generation": seen["generation"], "seen": seen["seen"]} if seen else {}
    try:
        return ask_running("log", model=said, **fields)
    except UnknownModel as error:
        if "not_taken_in" not in error.facts:
            raise
        # No program has asked the keeper for this model yet.
        return {"generation": None, "seen": 0, "lines": [], "death": None}


def _say_why_none(ctx: click.Context, model: str, told: Mapping[str, Any] | None) -> None:
    if told is None:
        say(f"No keeper runs, so {model} is not loaded and has no log.", err=True)
    elif told["death"] is None:
        say(f"{model} is not loaded, so it has no log.", err=True)
    else:
        tell(ctx, error_from_wire(told["death"]))


def _additions(said: str, told: Mapping[str, Any] | None) -> Iterator[str]:
    """The lines of a model's engines from now on, without an end; a keeper that ends is waited for."""
    while True:
        time.sleep(FOLLOW_EVERY_S)
        try:
            now = _asked(said, told)
        except KeepwarmError as error:
            yield f"keepwarm: {error.message}"
            time.sleep(1.0)
            continue
        if now is not None:
            yield from now["lines"]
        told = now
