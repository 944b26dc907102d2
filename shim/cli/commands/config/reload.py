"""`keepwarm config reload`: makes the running keeper use the configuration as it is now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from budget.errors import ConfigError
from shim.cli.console.context import read_config
from shim.cli.console.output import print_json
from shim.cli.console.running import is_running
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option
from shim.client import Shim

CHANGES = ("added", "removed", "changed", "reread", "unchanged", "settings", "restart")
"""What a reload tells: lists of models, the other keys that changed, and the keys that need a restart.

A `reread` model has the same entry, but its file was replaced."""


def restart_line(keys: Sequence[str]) -> str:
    """A line about the keys that a running keeper cannot change."""
    return f"not in effect before `keepwarm keeper stop`: {', '.join(keys)}"


@click.command()
@json_option
@click.pass_context
def reload(ctx: click.Context, *, as_json: bool) -> None:
    """Make the running keeper use the configuration as it is now.

    Models whose entries did not change stay warm. Models of other projects stay where a program uses
    them, or a pin holds them. The command names the keys that take effect only after a restart of the
    keeper.
    """
    config = read_config(ctx)
    if config.file is None:
        raise ConfigError(
            "keepwarm found no configuration, so there is none to reload; the keeper's stays in force.",
            hint="Run it in the folder of a keepwarm.toml, or name one with --config.",
        )
    running = is_running()
    told: Mapping[str, list[str]] = {name: [] for name in CHANGES}
    if running:
        with Shim(config, inline=False) as shim:
            told = shim.reload(config)
    if as_json:
        print_json({"running": running, **{name: list(told[name]) for name in CHANGES}})
    elif not running:
        click.echo("No keeper runs; the next one reads the configuration when it starts.")
    else:
        for name in CHANGES[:-1]:
            what = "unchanged, but their files changed" if name == "reread" else name
            say(f"{what}: {', '.join(told[name]) or 'none'}")
        if told["restart"]:
            say(restart_line(told["restart"]), err=True)
