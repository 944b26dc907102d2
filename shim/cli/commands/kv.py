"""`keepwarm kv`: the KV state that is kept on disk while its models are away."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from budget.errors import ConfigError, KeeperUnavailable
from shim.cli.console.context import config_of
from shim.cli.console.output import counted, print_json, print_table, size, span
from shim.cli.console.running import ask_running
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import complete_model, json_option
from shim.config import Config
from shim.keeper.kv.folder import claimed
from shim.keeper.kv.saved_files import KvFiles, kv_folder
from shim.wire.fingerprint import called


@click.group("kv", invoke_without_command=True)
@json_option
@click.pass_context
def kv_group(ctx: click.Context, *, as_json: bool) -> None:
    """Show and delete the KV state that is kept on disk.

    The keeper saves conversations and warm prompts when it evicts their model, and restores them when
    it loads the model again, even after a restart. Without a command this is `list`.
    """
    if ctx.invoked_subcommand is None:
        _show(config_of(ctx, uses=("kv",)), as_json=as_json)


@kv_group.command("list")
@json_option
@click.pass_context
def list_kept(ctx: click.Context, *, as_json: bool) -> None:
    """Show the kept state of each model. Starts no keeper and resets no time-out."""
    _show(config_of(ctx, uses=("kv",)), as_json=as_json)


@kv_group.command("clear")
@click.argument("model", required=False, shell_complete=complete_model)
@json_option
@click.pass_context
def clear(ctx: click.Context, model: str | None, *, as_json: bool) -> None:
    """Delete the kept state of all models, or of MODEL.

    State that a resident model holds in memory stays until the model is evicted.
    """
    config = config_of(ctx, uses=("kv",))
    if model is not None:
        config.entry(model)
    told = ask_running("kv_clear", model=called(config, model) if model is not None else None)
    if told is None:
        count, freed = _cleared(config, model)
    else:
        count, freed = int(told["files"]), int(told["bytes"])
    if as_json:
        print_json({"running": told is not None, "model": model, "files": count, "bytes": freed})
    else:
        say(f"{counted(count, 'file')} deleted, {size(freed)}.")


def _show(config: Config, *, as_json: bool) -> None:
    told = ask_running("kv")
    kept = _without_keeper(config) if told is None else told
    if as_json:
        print_json({"running": told is not None, **kept})
        return
    if kept["folder"] is None:
        why = kept["refused"] or "[kv] in the configuration says so"
        say(f"No KV state is kept: {why}.")
        return
    used, limit = size(kept["total_bytes"]), size(kept["limit_bytes"])
    say(f"{used} of {limit} in {kept['folder']}")
    if kept["models"]:
        _print_rows(kept["models"])


def _print_rows(models: list[Mapping[str, Any]]) -> None:
    rows = [
        (
            ", ".join(row["models"]) or row["engine"],
            row["conversations"],
            row["tokens"],
            size(row["bytes"]),
            size(row["warm_prompt_bytes"]) if row["warm_prompt_bytes"] else "",
            f"{span(row['used_s'])} ago" if row["used_s"] is not None else "",
        )
        for row in models
    ]
    figures = ("conversations", "tokens", "bytes", "warm prompt", "used")
    print_table(("model", *figures), rows, right=figures)


def _without_keeper(config: Config) -> dict[str, Any]:
    """The kept state by its indexes. Changes nothing, so another keeper may use the folder."""
    folder = kv_folder(config)
    with _typed(folder):
        files = KvFiles.look(folder)
    used = files.folder if files else folder
    return {
        "folder": used if config.kv.limit_bytes else None,
        "limit_bytes": config.kv.limit_bytes,
        "total_bytes": files.total_bytes if files else 0,
        "models": files.rows() if files else [],
        "refused": None,
    }


@contextlib.contextmanager
def _typed(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system into one that names the folder of KV state."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The folder of KV state {folder} cannot be used: {error.strerror}.",
            hint="Look at its owner and mode, or choose another [kv] folder.",
            path=str(error.filename or folder),
        ) from None


def _cleared(config: Config, model: str | None) -> tuple[int, int]:
    """Delete kept state that no keeper uses; returns how many files and bytes.

    Raises:
        KeeperUnavailable: a keeper with another runtime folder uses it.
    """
    folder = claimed(kv_folder(config))
    if folder is None:
        return 0, 0
    # The next keeper may delete more, by the configuration. This command deletes only what it was asked to.
    with _typed(folder):
        files = KvFiles.open(folder, sys.maxsize, math.inf)
    if files is None:
        raise KeeperUnavailable(
            f"Another keeper uses {folder}.",
            hint="It has another runtime folder ($KEEPWARM_RUNTIME_DIR), or is about to end.",
        )
    try:
        return files.clear(model)
    finally:
        files.release()
