"""`keepwarm config`: its schema, its mistakes, the values in effect with their origin, and reloading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from backends.gguf import read_header
from budget.errors import ConfigError, KeepwarmError, RoleViolation
from shim.cli.console.context import config_path
from shim.cli.console.failure import EXIT_CALLER
from shim.cli.console.output import console, print_json, print_table
from shim.cli.console.shared_options import config_option, json_option
from shim.cli.lazy import LazyGroup
from shim.config import (
    Config,
    ModelEntry,
    find_config,
    json_schema,
    load_config,
    markdown_reference,
)
from shim.config.problems import dotted
from shim.config.role_checks import check_role


@click.group(
    "config",
    cls=LazyGroup,
    lazy={
        "reload": (
            "shim.cli.commands.config.reload:reload",
            "Make the running keeper use the configuration as it is now.",
        ),
        "trust": (
            "shim.cli.commands.config.trust:trust",
            "Let a file of this folder use keys, engine arguments and folders.",
        ),
    },
)
def config_group() -> None:
    """Check, show, reload and trust the configuration."""


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
    chosen = path or config_path(ctx)
    file = find_config(chosen)
    if as_json:
        print_json({"file": str(file) if file else None})
    else:
        click.echo(str(file) if file else "no configuration file found", err=file is None)
    ctx.exit(0 if file else EXIT_CALLER)


@config_group.command("check")
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, path: Path | None, *, as_json: bool) -> None:
    """Check the configuration and the files it names; status 2 when something is wrong."""
    report = check_report(path or config_path(ctx))
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    ctx.exit(0 if report["ok"] else EXIT_CALLER)


@config_group.command("show")
@config_option
@json_option
@click.pass_context
def show(ctx: click.Context, path: Path | None, *, as_json: bool) -> None:
    """Print every key in effect with its value and where it comes from."""
    config = load_config(path or config_path(ctx), uses=())
    keys = effective(config)
    if as_json:
        file = str(config.file) if config.file else None
        print_json({"file": file, "keys": keys})
        return
    rows = [(name, json.dumps(item["value"]), item["origin"]) for name, item in keys.items()]
    print_table(("key", "value", "from"), rows)


def check_report(path: Path | None) -> dict[str, Any]:
    """What `config check --json` prints: `file`, `ok`, `problems`, `models`, `warnings`.

    Each problem has `key`, `line`, `found`, `allowed` and `message`. A file that is named and missing is
    a problem, too, and so is one that does not meet its model's role.
    """
    try:
        config = load_config(path)
    except ConfigError as error:
        listed = error.facts.get("problems")
        plain = {"key": None, "line": error.facts.get("line"), "message": str(error)}
        problems = listed if isinstance(listed, list) else [plain]
        file = error.facts.get("file")
        return {"file": file, "ok": False, "problems": problems, "models": [], "warnings": []}
    problems = [_missing(config, key, file) for key, file in config.missing_files()]
    problems += _unfit(config)
    return {
        "file": str(config.file) if config.file else None,
        "ok": not problems,
        "problems": problems,
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
        "warnings": [
            f"{config.origin(f'models.{name}.path')}: the file of {name} has no chat template, as those of"
            " base models; messages are written as ChatML. Give one by --chat-template in engine_args."
            for name, entry in config.models.items()
            if _has_no_template(entry)
        ],
    }


def _has_no_template(entry: ModelEntry) -> bool:
    """Whether a chat model's file is here and brings no template, and the configuration gives none."""
    given = any(argument.startswith("--chat-template") for argument in entry.engine_args)
    if given or entry.role == "embedder" or entry.path is None or not entry.path.is_file():
        return False
    try:
        return read_header(entry.path).chat_template is None
    except KeepwarmError:
        return False


def _missing(config: Config, key: str, file: Path) -> dict[str, Any]:
    return _problem(config, key, f"{file}, which is not there", "a file that can be read")


def _unfit(config: Config) -> list[dict[str, Any]]:
    """The models whose files are here and do not meet their roles."""
    found = []
    for name, entry in config.models.items():
        if entry.role is None or entry.path is None or not entry.path.is_file():
            continue
        try:
            check_role(name, entry, read_header(entry.path))
        except RoleViolation as error:
            allowed = "a model that meets its role"
            found.append(
                _problem(config, f"models.{name}.role", f"{entry.role}. {error.message}", allowed)
            )
        except KeepwarmError:
            continue  # the first use of the file says what is wrong with it
    return found


def _problem(config: Config, key: str, found: str, allowed: str) -> dict[str, Any]:
    line = config.origin(key).rpartition(":")[2]
    return {
        "key": key,
        "line": int(line) if line.isdigit() else None,
        "found": found,
        "allowed": allowed,
        "message": f"{config.origin(key)}: {key}: found {found.rstrip('.')}; allowed: {allowed}.",
    }


def _print_report(report: Mapping[str, Any]) -> None:
    click.echo(report["file"] or "no configuration file (defaults only)")
    for problem in report["problems"]:
        click.echo(f"  {problem['message']}")
    if not report["ok"]:
        count = len(report["problems"])
        console().print(f"{count} {'mistake' if count == 1 else 'mistakes'}", style="red")
        return
    rows = [
        (m["name"], m["role"], m["backend"], m["source"], "yes" if m["pinned"] else "")
        for m in report["models"]
    ]
    print_table(("model", "role", "runs on", "source", "pinned"), rows)
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}")
    console().print("no mistakes", style="green")


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
