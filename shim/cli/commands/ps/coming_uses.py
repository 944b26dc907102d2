"""What `keepwarm ps` shows of declared uses: which come next, and what looking ahead did for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from shim.cli.console.output import counted, print_table, size
from shim.cli.console.said_lines import say

USES_SHOWN: Final = 6


def print_plans(declared: Sequence[Mapping[str, Any]], prefetch: Mapping[str, Any]) -> None:
    """Print a row for each plan and a line about loads ahead of requests; nothing where there are none."""
    if declared:
        click.echo()
        rows = [(row["plan"], row["pid"], _uses(row), row["left"]) for row in declared]
        print_table(("plan", "process", "next uses", "left"), rows, right=("process", "left"))
    if declared or prefetch["loads"] or prefetch["staged_bytes"]:
        click.echo()
        say(f"looking ahead ({prefetch['mode']}): {'; '.join(_done(prefetch))}")


def _uses(plan: Mapping[str, Any]) -> str:
    shown = [f"{use['model']} ({use['state']})" for use in plan["next"][:USES_SHOWN]]
    return ", ".join([*shown, *(["..."] if plan["left"] > len(shown) else [])])


def _done(prefetch: Mapping[str, Any]) -> list[str]:
    said = [f"{counted(prefetch['loads'], 'load')}, {prefetch['used']} used"]
    said.append(f"{size(prefetch['staged_bytes'])} staged, {size(prefetch['wasted_bytes'])} wasted")
    if prefetch["staging"]:
        said.append(f"reading {prefetch['staging']}")
    if prefetch["cores_are_busy"]:
        said.append("loads wait for a free core")
    return said
