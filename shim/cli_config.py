"""`keepwarm config`: the schema, the check, what is in effect, and which file it is from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from budget.errors import ConfigError
from shim.config import Config, find_config, json_schema, load_config, markdown_reference
from shim.config.problems import dotted

EXIT_PROBLEMS = 2
"""The exit status of a configuration that does not hold, as of every caller's error."""

config_option = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    default=None,
    help="The file to read instead of the one that is found.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("config")
def config_group() -> None:
    """Check and show the configuration."""


@config_group.command("schema")
@click.option(
    "--format",
    "style",
    type=click.Choice(["json", "markdown"]),
    default="json",
    help="A JSON schema for editors, or the tables of the documentation.",
)
def schema(style: str) -> None:
    """Print the schema of keepwarm.toml."""
    if style == "markdown":
        click.echo(markdown_reference(), nl=False)
    else:
        click.echo(json.dumps(json_schema(), indent=2))


@config_group.command("path")
@config_option
@json_option
@click.pass_context
def path_command(ctx: click.Context, path: Path | None, *, as_json: bool) -> None:
    """Print the path of the file in effect; status 2 when there is none."""
    chosen = path or _inherited(ctx)
    file = find_config(chosen)
    if as_json:
        click.echo(json.dumps({"file": str(file) if file else None}))
    else:
        click.echo(str(file) if file else "no configuration file found", err=file is None)
    ctx.exit(0 if file else EXIT_PROBLEMS)


@config_group.command("check")
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, path: Path | None, *, as_json: bool) -> None:
    """Check the configuration and the files it names; status 2 when something is wrong."""
    report = check_report(path or _inherited(ctx))
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print_report(report)
    ctx.exit(0 if report["ok"] else EXIT_PROBLEMS)


@config_group.command("show")
@config_option
@json_option
@click.pass_context
def show(ctx: click.Context, path: Path | None, *, as_json: bool) -> None:
    """Print every key in effect with its value and where it comes from."""
    config = load_config(path or _inherited(ctx))
    keys = effective(config)
    if as_json:
        file = str(config.file) if config.file else None
        click.echo(json.dumps({"file": file, "keys": keys}))
        return
    table = Table("key", "value", "from", box=None)
    for name, item in keys.items():
        table.add_row(name, json.dumps(item["value"]), item["origin"])
    Console(soft_wrap=True).print(table)


def _inherited(ctx: click.Context) -> Path | None:
    """The `--config` of the command above, where it has one."""
    parent = ctx.find_root()
    value = parent.params.get("config") or parent.params.get("path")
    return Path(value) if value else None


def check_report(path: Path | None) -> dict[str, Any]:
    """What `config check --json` prints: `file`, `ok`, `problems`, `models`.

    Each problem has `key`, `line`, `found`, `allowed` and `message`; files that are named and not
    there are problems too.
    """
    try:
        config = load_config(path)
    except ConfigError as error:
        listed = error.facts.get("problems")
        plain = {"key": None, "line": error.facts.get("line"), "message": str(error)}
        problems = listed if isinstance(listed, list) else [plain]
        file = error.facts.get("file")
        return {"file": file, "ok": False, "problems": problems, "models": []}
    missing = [_missing(config, key, file) for key, file in config.missing_files()]
    return {
        "file": str(config.file) if config.file else None,
        "ok": not missing,
        "problems": missing,
        "models": [
            {
                "name": name,
                "role": entry.role,
                "backend": entry.backend,
                "source": entry.url or entry.hf or str(entry.path),
                "pinned": entry.pinned,
            }
            for name, entry in config.models.items()
        ],
    }


def _missing(config: Config, key: str, file: Path) -> dict[str, Any]:
    line = config.origin(key).rpartition(":")[2]
    found, allowed = f"{file}, which is not there", "a file that can be read"
    return {
        "key": key,
        "line": int(line) if line.isdigit() else None,
        "found": found,
        "allowed": allowed,
        "message": f"{config.origin(key)}: {key}: found {found}; allowed: {allowed}.",
    }


def _print_report(report: Mapping[str, Any]) -> None:
    console = Console(soft_wrap=True)
    where = report["file"] or "no configuration file (defaults only)"
    console.print(where, markup=False, highlight=False)
    for problem in report["problems"]:
        console.print(f"  {problem['message']}", markup=False, highlight=False)
    if not report["ok"]:
        count = len(report["problems"])
        console.print(f"{count} {'mistake' if count == 1 else 'mistakes'}", style="red")
        return
    table = Table("model", "role", "runs on", "source", "pinned", box=None)
    for model in report["models"]:
        pinned = "yes" if model["pinned"] else ""
        table.add_row(model["name"], model["role"] or "", model["backend"], model["source"], pinned)
    console.print(table)
    console.print("no mistakes", style="green")


def effective(config: Config) -> dict[str, dict[str, Any]]:
    """Every key in effect: `{dotted key: {"value", "origin"}}`. No secret is ever in it."""
    data = config.model_dump(mode="json")
    paths: list[tuple[tuple[str, ...], Any]] = []
    for section, table in data.items():
        if section != "models":
            paths += [((section, key), value) for key, value in table.items()]
            continue
        for name, entry in table.items():
            known = config.models[name].relevant_keys()
            paths += [((section, name, k), v) for k, v in entry.items() if k in known]
    return {
        dotted(path): {"value": value, "origin": config.origin(dotted(path))}
        for path, value in paths
    }
