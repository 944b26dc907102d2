"""A click group whose commands are imported when they are run, not when the program starts."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from shim.cli.console.context import accept_config
from shim.lazy_names import check_packages

ENTRY_POINTS: Final = "keepwarm.commands"
"""The entry-point group through which other packages add commands."""


class LazyGroup(click.Group):
    """Commands by name as `("module:attribute", "one line of help")` (`command_at`), beside ordinary ones.

    `elsewhere` has names that other programs use, and the commands that serve here. With `plugin_lines`,
    the lines of help of those that are known, the group also has the commands of entry points.

    The line of help is written here as well as in the command, so that listing the commands imports
    none of them.
    """

    def __init__(
        self,
        *args: Any,
        lazy: Mapping[str, tuple[str, str]] | None = None,
        elsewhere: Mapping[str, str] | None = None,
        plugin_lines: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})
        self.elsewhere = dict(elsewhere or {})
        self.plugin_lines = plugin_lines

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands: keepwarm's own in their order, then those of plugins by name."""
        named = [*super().list_commands(ctx), *self.lazy]
        return [*named, *(name for name in sorted(self._plugins()) if name not in named)]

    def _plugins(self) -> dict[str, EntryPoint]:
        return {} if self.plugin_lines is None else plugins()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name in self.lazy:
            return accept_config(command_at(self.lazy[cmd_name][0]))
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return accept_config(found)
        plugin = self._plugins().get(cmd_name)
        return None if plugin is None else load_plugin(plugin)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments begin with; an unknown one is told with its like."""
        name = args[0]
        # A shell that completes asks about commands that are not whole yet.
        if (
            not ctx.resilient_parsing
            and not name.startswith("-")
            and self.get_command(ctx, name) is None
        ):
            close = self.elsewhere.get(name) or " or ".join(
                get_close_matches(name, self.list_commands(ctx))
            )
            if close:
                ctx.fail(f"No such command {name!r}. Did you mean {close}?")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands and options that begin so; no command is imported for that."""
        named = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        helped = [CompletionItem(name, help=self._line_of(name)) for name in named]
        return [*helped, *click.Command.shell_complete(self, ctx, incomplete)]

    def _line_of(self, name: str) -> str:
        """A line of help about a command, which is not imported."""
        if name in self.lazy:
            return self.lazy[name][1]
        if name in self.commands:
            return self.commands[name].get_short_help_str(100)
        package = self._plugins()[name].module.partition(".")[0]
        return (self.plugin_lines or {}).get(name, f"From the package {package}.")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        rows = [(name, self._line_of(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def command_at(place: str) -> click.Command:
    """The command `attribute` of the module `shim.cli.commands.module`, as `"module:attribute"`."""
    module, _, attribute = place.partition(":")
    command = getattr(importlib.import_module(f"shim.cli.commands.{module}"), attribute)
    assert isinstance(command, click.Command)
    return command


def plugins() -> dict[str, EntryPoint]:
    """The commands that installed packages add, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def load_plugin(point: EntryPoint) -> click.Command:
    """The command of an entry point.

    Raises:
        ClickException: it cannot be imported, or it is no command. Other commands go on working.
    """
    try:
        if point.dist is not None and point.dist.name == "keepwarm":
            check_packages(point.module.partition(".")[0])
        command = point.load()
    except Exception as error:
        raise click.ClickException(
            f"the command {point.name} ({point.value}) cannot be used: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise click.ClickException(
            f"the command {point.name} ({point.value}) is a {type(command).__name__}, "
            "not a click command."
        )
    return command
