"""`keepwarm config`: its schema, its mistakes, the values in effect with their origin, and reloading."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from budget.errors import ConfigError
from shim.cli.commands.config.file_faults import file_faults
from shim.cli.console.context import config_path, read_config
from shim.cli.console.failure import EXIT_CALLER
from shim.cli.console.output import console, counted, print_json, print_table
from shim.cli.console.said_lines import say, say_all
from shim.cli.console.shared_options import json_option
from shim.cli.lazy import LazyGroup
from shim.config import Config, find_config, json_schema, load_config, markdown_reference
from shim.config.problems import dotted


@click.group(
    "config",
    cls=LazyGroup,
    lazy={
        "reload": (
            "config.reload:reload",
            "Make the running keeper use the configuration as it is now.",
        ),
        "trust": (
            "config.trust:trust",
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
@json_option
@click.pass_context
def path_command(ctx: click.Context, *, as_json: bool) -> None:
    """Print the path of the file in effect; status 2 when there is none."""
    file = find_config(config_path(ctx))
    if as_json:
        print_json({"file": file})
    elif file:
        # It is all of the line, for a script: no name in it can pass for anything else.
        click.echo(file)
    else:
        say("no configuration file found", err=True)
    ctx.exit(0 if file else EXIT_CALLER)


@config_group.command("check")
@json_option
@click.pass_context
def check(ctx: click.Context, *, as_json: bool) -> None:
    """Check the configuration and the files it names; status 2 when something is wrong."""
    report = check_report(config_path(ctx))
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    ctx.exit(0 if report["ok"] else EXIT_CALLER)


@config_group.command("show")
@json_option
@click.pass_context
def show(ctx: click.Context, *, as_json: bool) -> None:
    """Print every key in effect with its value and where it comes from."""
    config = read_config(ctx, uses=())
    keys = effective(config)
    if as_json:
        print_json({"file": config.file, "keys": keys})
        return
    rows = [(name, json.dumps(item["value"]), item["origin"]) for name, item in keys.items()]
    print_table(("key", "value", "from"), rows)


def check_report(path: Path | None) -> dict[str, Any]:
    """What `config check --json` prints: `file`, `ok`, `problems`, `hint`, `models`, `warnings`.

    Each problem has `key`, `line`, `found`, `allowed` and `message`. A file that is named and missing is
    a problem, too, and so is one that no engine could run as it is configured.
    """
    try:
        config = load_config(path)
    except ConfigError as error:
        listed = error.facts.get("problems")
        plain = {"key": None, "line": error.facts.get("line"), "message": str(error)}
        problems = listed if isinstance(listed, list) else [plain]
        return {
            "file": error.facts.get("file"),
            "ok": False,
            "problems": problems,
            "hint": error.hint,
            "models": [],
            "warnings": [],
        }
    problems, without_template = file_faults(config)
    return {
        "file": config.file,
        "ok": not problems,
        "problems": problems,
        "hint": "",
        "models": [
            {
                "name": name,
                "role": entry.role,
                "backend": entry.backend,
                "source": entry.url
                or entry.hf
                or entry.factory
                or shlex.join(entry.command or ())
                or entry.path,
                "pinned": entry.pinned,
            }
            for name, entry in config.models.items()
        ],
        "warnings": [
            f"{config.origin(f'models.{name}.path')}: the file of {name} has no chat template, as those of"
            " base models; messages are written as ChatML. Give one by --chat-template in engine_args."
            for name in without_template
        ],
    }


def _print_report(report: Mapping[str, Any]) -> None:
    say(report["file"] or "no configuration file (defaults only)")
    for problem in report["problems"]:
        say_all(problem["message"], before="  ")
    if not report["ok"]:
        console().print(counted(len(report["problems"]), "mistake"), style="red")
        if report["hint"]:
            say_all(report["hint"])
        return
    rows = [
        (m["name"], m["role"], m["backend"], m["source"], "yes" if m["pinned"] else "")
        for m in report["models"]
    ]
    print_table(("model", "role", "runs on", "source", "pinned"), rows)
    for warning in report["warnings"]:
        say(f"warning: {warning}")
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
