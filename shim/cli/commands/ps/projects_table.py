"""The table of projects in `keepwarm ps`: which configuration a name in the other tables is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from shim.cli.console.output import print_table


def print_projects(projects: Sequence[Mapping[str, Any]]) -> None:
    """Print each project with its file and its models as the other tables name them.

    With one project every name is that of its own configuration, and nothing is printed.
    """
    if len(projects) < 2:
        return
    click.echo()
    rows = [
        (row["project"], row["file"] or "given in code", ", ".join(sorted(row["names"].values())))
        for row in projects
    ]
    print_table(("project", "configuration", "models"), rows)
