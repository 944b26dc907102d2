"""How a command reports an error: a line and a hint or a JSON object, and an exit code by fault."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from budget.errors import CallerError, KeepwarmError, LoadError, OutsideError
from shim.cli.console.said_lines import say, say_all

EXIT_OURS: Final = 1
EXIT_CALLER: Final = 2
EXIT_LOAD: Final = 3
EXIT_OUTSIDE: Final = 4
EXIT_INTERRUPTED: Final = 130

_LINES: Final = 10
"""Lines of a log or a traceback that a terminal gets."""
_JSON_KEY: Final = "keepwarm.json"
_CODES: Final = ((CallerError, EXIT_CALLER), (LoadError, EXIT_LOAD), (OutsideError, EXIT_OUTSIDE))


def exit_code(error: BaseException) -> int:
    """The exit code of an error, which says whose fault it is; 1 for a bug of keepwarm."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_OURS)


@contextmanager
def outside(what: object, done: str) -> Iterator[None]:
    """Inside, an error of the operating system says that `what` cannot be `done`: read, written.

    Raises:
        OutsideError: in place of the error.
    """
    try:
        yield
    except OSError as error:
        raise OutsideError(f"{what} cannot be {done}: {error.strerror or error}.") from error


def remember_json(ctx: click.Context, _: click.Parameter | None, value: bool) -> bool:  # noqa: FBT001
    """Note that errors are to be printed as JSON. This is the callback of every `--json`."""
    ctx.meta[_JSON_KEY] = value
    return value


def _details(error: KeepwarmError) -> tuple[str, list[str]]:
    """The lines below an error: the log's, if the message does not quote them, or the user's code's."""
    log_tail, traceback = error.facts.get("log_tail"), error.facts.get("traceback")
    if isinstance(log_tail, list) and log_tail:
        return "its last lines", [] if "\n  | " in error.message else list(map(str, log_tail))
    return "its traceback", traceback.splitlines() if isinstance(traceback, str) else []


def tell(ctx: click.Context, error: KeepwarmError) -> None:
    """Print an error as text on stderr, and with `--json` also as `{"error": ...}` on stdout."""
    say_all(error.message, before="keepwarm: error: ", err=True)
    if error.hint:
        say_all(error.hint, before="  ", err=True)
    title, lines = _details(error)
    if lines:
        say(f"  {title}:", err=True)
    for line in lines[-_LINES:]:
        say(f"    {line.expandtabs()}", err=True)
    if ctx.meta.get(_JSON_KEY):
        click.echo(json.dumps({"error": error.to_wire()}))
