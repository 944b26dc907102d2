"""A command that another package would add."""

from __future__ import annotations

import click

NOT_A_COMMAND = 1


@click.command("shown")
def command() -> None:
    """Say that it ran."""
    click.echo("shown")
