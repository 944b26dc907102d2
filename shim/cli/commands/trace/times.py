"""Times that the options of `keepwarm trace` take: `90s`, `5m`, `30d`."""

from __future__ import annotations

import click

from shim.config.schema.values import parse_seconds
from shim.wire.messages import LONGEST_S

_ALLOWED = "Allowed: seconds, or a text such as 90s, 5m, 1h30m or 30d"


def duration(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    """The seconds of a time that is not over at once, and no longer than a keeper looks back.

    Raises:
        BadParameter: it is none.
    """
    seconds = _parsed(value)
    if seconds <= 0.0:
        raise click.BadParameter(f"found {value}, which is no time at all. {_ALLOWED}.")
    if seconds > LONGEST_S:
        most = f"at most {LONGEST_S / 86_400:g}d"
        raise click.BadParameter(f"found {value}, which is too long. {_ALLOWED}, {most}.")
    return seconds


def age(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """The seconds of a time that may be left out.

    Raises:
        BadParameter: it is none.
    """
    return None if value is None else _parsed(value)


def _parsed(value: str) -> float:
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(f"found {value}: {error}. {_ALLOWED}.") from None
