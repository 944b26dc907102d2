"""What commands take from the `keepwarm` group: the configuration and its models."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

import click

from budget.errors import ConfigError
from shim.config import Config, load_config

_AFTER_COMMAND: Final = "keepwarm.config"


def config_path(ctx: click.Context) -> Path | None:
    """The file given by `--config` before or after the command (this one counts), or None."""
    value = ctx.meta.get(_AFTER_COMMAND) or ctx.find_root().params.get("config")
    return Path(value) if value else None


def accept_config(command: click.Command) -> click.Command:
    """A command, or all of a group, that takes `--config` after its name as well."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            accept_config(inner)
    elif not any("--config" in parameter.opts for parameter in command.params):
        after = click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            expose_value=False,
            callback=_remember_config,
            help="The configuration file, as before the command.",
        )
        command.params.append(after)
    return command


def _remember_config(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.meta[_AFTER_COMMAND] = value


def read_config(ctx: click.Context, uses: Collection[str] | None = None) -> Config:
    """The configuration in effect, for a command that acts on the sections it `uses` (None: all).

    Raises:
        ConfigError: the file has mistakes.
    """
    return load_config(config_path(ctx), uses=uses)


def config_or_defaults(ctx: click.Context, uses: Collection[str] = ()) -> Config:
    """The same; the defaults where the file does not hold, which other commands tell."""
    try:
        return read_config(ctx, uses)
    except ConfigError:
        return Config()


def config_of(ctx: click.Context, uses: Collection[str] | None = None) -> Config:
    """The same, which has to say something.

    Raises:
        ConfigError: the file has mistakes, or there is neither a file nor an endpoint.
    """
    return required(read_config(ctx, uses))


def required(config: Config) -> Config:
    """A configuration that says something.

    Raises:
        ConfigError: there is neither a file nor an endpoint.
    """
    if config.file is None and not config.models:
        raise ConfigError(
            "keepwarm found no configuration, so there are no models.",
            hint="Write a keepwarm.toml (docs/configuration.md), name one with --config, or give "
            "`chat` and `run` the path of a GGUF file.",
        )
    return config
