"""`keepwarm completion`: what a shell needs to complete commands, options and models."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from shim.cli.console.said_lines import say

_SHELLS: dict[str, tuple[type[ShellComplete], str]] = {
    "bash": (BashComplete, '~/.bashrc: eval "$(keepwarm completion bash)"'),
    "zsh": (ZshComplete, '~/.zshrc: eval "$(keepwarm completion zsh)"'),
    "fish": (FishComplete, "~/.config/fish/config.fish: keepwarm completion fish | source"),
}


@click.command("completion")
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes commands, options and names of models.

    It asks the configuration alone: completing starts no keeper.

    Example, in ~/.bashrc: eval "$(keepwarm completion bash)"
    """
    kind, place = _SHELLS[shell]
    made = kind(ctx.find_root().command, {}, "keepwarm", "_KEEPWARM_COMPLETE")
    say(f"# In {place}")
    click.echo(made.source_template % made.source_vars())
