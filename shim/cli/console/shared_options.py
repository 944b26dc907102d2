"""Arguments and input that several commands share: MODEL, `--json`, and text on stdin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from click.shell_completion import CompletionItem

from budget.errors import InvalidRequest
from shim.cli.console.context import config_or_defaults
from shim.cli.console.failure import remember_json

Decorated = Callable[..., Any]


def complete_model(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The models that begin so, or files where a path begins. Only the configuration is read."""
    if incomplete.startswith(("/", ".", "~")):
        return [CompletionItem(incomplete, type="file")]
    return [
        CompletionItem(name, help=entry.role)
        for name, entry in config_or_defaults(ctx).models.items()
        if name.startswith(incomplete)
    ]


model_argument = click.argument("model", shell_complete=complete_model)
json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=remember_json,
    help="Print one JSON object.",
)
"""The argument `as_json`. Errors are then printed as JSON, too."""


def log_options(command: Decorated) -> Decorated:
    """The options of a command that prints the end of a log: `--lines` and `--follow`."""
    lines = click.option(
        "-n",
        "--lines",
        type=click.IntRange(min=0),
        default=50,
        show_default=True,
        help="How many lines.",
    )
    follow = click.option(
        "-f", "--follow", is_flag=True, help="Go on printing new lines, until Ctrl-C."
    )
    return lines(follow(command))


def sampling_options(command: Decorated) -> Decorated:
    """The options of a chat's answers: `--max-tokens`, `--temperature` and `--seed`."""
    most = click.option(
        "--max-tokens", type=click.IntRange(min=1), help="An answer has at most this many tokens."
    )
    temperature = click.option(
        "--temperature", type=click.FloatRange(min=0), help="0 always samples the likeliest token."
    )
    seed = click.option("--seed", type=int, help="Makes sampling repeatable.")
    return most(temperature(seed(command)))


def read_stdin() -> str:
    """All of stdin.

    Raises:
        InvalidRequest: it is not UTF-8, or cannot be read.
    """
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The text on stdin is not UTF-8 (byte {error.start}).", offset=error.start
        ) from None
    except OSError as error:
        raise InvalidRequest(f"stdin cannot be read: {error.strerror or error}.") from None
