"""What commands print: tables for people, figures in units people read, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS: Final = 100_000
_STEP: Final = 1024
Row = Sequence[object]


def console(*, err: bool = False) -> Console:
    """Where tables go. Into a pipe nothing is cut, wrapped or coloured."""
    found = Console(stderr=err, soft_wrap=True)
    if found.is_terminal:
        return found
    return Console(stderr=err, soft_wrap=True, width=_PIPE_COLUMNS, color_system=None)


def print_table(columns: Sequence[str], rows: Sequence[Row], *, right: Sequence[str] = ()) -> None:
    """A table without lines; `right` names the columns of numbers. In a pipe a row is one line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=False
        )
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    target = console()
    with target.capture() as captured:
        target.print(table, soft_wrap=False)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    # A bracket in a name is no markup.
    return text.replace("[", "\\[")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def size(n_bytes: float) -> str:
    """Bytes as people read them: `312 B`, `1.5 KiB`, `4.83 GiB`."""
    if abs(n_bytes) < _STEP:
        return f"{n_bytes:.0f} B"
    amount = float(n_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= _STEP
        if abs(amount) < _STEP or unit == "TiB":
            break
    return f"{amount:.{2 if abs(amount) < 10 else 1 if abs(amount) < 100 else 0}f} {unit}"


def sizes(by_device: Mapping[str, float | None]) -> str:
    """Bytes by device: `host 1.50 GiB, cuda:0 4.83 GiB`; the name is left out of a lone host.

    None is `unknown`.
    """
    said = {d: "unknown" if amount is None else size(amount) for d, amount in by_device.items()}
    if set(said) <= {"host"}:
        return ", ".join(said.values())
    return ", ".join(f"{device} {text}" for device, text in said.items())


def span(seconds: float | None) -> str:
    """A length of time: `0.42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
