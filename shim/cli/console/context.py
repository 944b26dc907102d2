"""What commands take from the `keepwarm` group: the configuration and its models."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import click

from budget.errors import ConfigError, UnknownModel
from shim.config import Config, ModelEntry, load_config


def config_path(ctx: click.Context) -> Path | None:
    """The file given by `keepwarm --config`, or None."""
    value = ctx.find_root().params.get("config")
    return Path(value) if value else None


def config_of(ctx: click.Context, uses: Collection[str] | None = None) -> Config:
    """The configuration in effect, for a command that acts on the sections it `uses` (None: all).

    Raises:
        ConfigError: the file has mistakes, or there is neither a file nor an endpoint.
    """
    config = load_config(config_path(ctx), uses=uses)
    if config.file is None and not config.models:
        raise ConfigError(
            "keepwarm found no configuration, so there are no models.",
            hint="Write a keepwarm.toml (docs/configuration.md), or name one with --config.",
        )
    return config


def entry_of(config: Config, model: str) -> ModelEntry:
    """A model of the configuration.

    Raises:
        UnknownModel: the configuration has no model of that name.
    """
    entry = config.models.get(model)
    if entry is None:
        raise UnknownModel(
            f"No model is called {model!r}.",
            hint=f"{config.file or 'HARNESS_ENDPOINTS'} has: "
            f"{', '.join(sorted(config.models)) or 'no models'}.",
            model=model,
        )
    return entry
