"""How a command reports an error: a line and a hint or a JSON object, and an exit code by fault."""

from __future__ import annotations

import json
from typing import Final

import click

from budget.errors import CallerError, KeepwarmError, LoadError, OutsideError

EXIT_OURS: Final = 1
EXIT_CALLER: Final = 2
EXIT_LOAD: Final = 3
EXIT_OUTSIDE: Final = 4
EXIT_INTERRUPTED: Final = 130

_JSON_KEY: Final = "keepwarm.json"
_CODES: Final = ((CallerError, EXIT_CALLER), (LoadError, EXIT_LOAD), (OutsideError, EXIT_OUTSIDE))


def exit_code(error: BaseException) -> int:
    """The exit code of an error, which says whose fault it is; 1 for a bug of keepwarm."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_OURS)


def remember_json(ctx: click.Context, _: click.Parameter | None, value: bool) -> bool:  # noqa: FBT001
    """Note that errors are to be printed as JSON. This is the callback of every `--json`."""
    ctx.meta[_JSON_KEY] = value
    return value


def tell(ctx: click.Context, error: KeepwarmError) -> None:
    """Print an error as text on stderr, and with `--json` also as `{"error": ...}` on stdout."""
    click.echo(f"keepwarm: error: {error.message}", err=True)
    if error.hint:
        click.echo(f"  {error.hint}", err=True)
    log_tail = error.facts.get("log_tail")
    if isinstance(log_tail, list) and log_tail:
        click.echo("  its last lines:", err=True)
        for line in log_tail[-10:]:
            click.echo(f"    {line}", err=True)
    if ctx.meta.get(_JSON_KEY):
        click.echo(json.dumps({"error": error.to_wire()}))
