"""`keepwarm show`: the facts of one model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from shim.cli.commands.about.listing import shown_state
from shim.cli.commands.about.model_facts import facts_of
from shim.cli.console.chosen_model import choose
from shim.cli.console.output import print_json, print_table, size, sizes, span
from shim.cli.console.running import ask_running
from shim.cli.console.shared_options import json_option, model_argument
from shim.config import FOREVER


@click.command("show")
@model_argument
@json_option
@click.pass_context
def show_model(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Show the facts of a model: its file, its settings, and its engine.

    MODEL is a name of the configuration, or the path of a GGUF file. Nothing is started, loaded or
    downloaded. `keepwarm inspect FILE` shows what a file takes.

    Example: keepwarm show writer
    """
    chosen = choose(ctx, model, uses=())
    facts = facts_of(chosen.config, chosen.model, ask_running("status"))
    if as_json:
        print_json(facts)
        return
    print_table(("fact", "value"), [row for row in _rows(facts) if row[1] not in (None, "")])


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [
        ("model", facts["model"]),
        ("from", facts["from"] if facts["from"] != "default" else None),
        ("role", facts["role"]),
        ("state", shown_state(facts)),
        ("booked", size(facts["bytes"]) if facts["bytes"] else None),
        ("measured", sizes(facts["measured"]) if facts["measured"] else None),
        ("bytes learned on", facts["learned_on"]),
        ("priority", facts["priority"] or None),
    ]
    if facts["remote"]:
        return [*rows, ("endpoint", facts["url"]), ("name there", facts["model_id"])]
    if facts["factory"] or facts["command"]:
        command = shlex.join(facts["command"] or ())
        code = ("factory", facts["factory"]) if facts["factory"] else ("command", command)
        return [*rows, code, ("slots", facts["slots"]), ("stays", _stays(facts))]
    return rows + _file_rows(facts)


def _stays(facts: Mapping[str, Any]) -> str:
    kept_s = facts["keep_alive_s"]
    return "until bytes are needed" if kept_s == FOREVER else f"{span(kept_s)} unused"


def _file_rows(facts: Mapping[str, Any]) -> list[tuple[str, object]]:
    file_bytes, parameters = facts["file_bytes"], facts["parameters"]
    settings: list[tuple[str, object]] = [
        ("slots", facts["slots"]),
        ("KV cache", "/".join(dict.fromkeys(facts["kv_types"] or ())) or None),
        ("stays", _stays(facts)),
        ("hub", facts["hf"]),
        ("file", facts["file"]),
    ]
    if facts["problem"]:
        return [*settings, ("problem", facts["problem"])]
    # A folder of vLLM's says less than a GGUF file does.
    trained, context, bits = (
        facts[key] for key in ("trained_context", "context", "min_bits_per_weight")
    )
    for_one = facts["context_per_slot"]
    return [
        ("context", f"{context} tokens, {for_one} for a request" if context else None),
        *settings,
        ("size", f"{size(file_bytes)}" + (f", {facts['files']} files" * (facts["files"] > 1))),
        ("title", facts["title"]),
        ("architecture", facts["architecture"]),
        (
            "parameters",
            f"{parameters / 1e9:.2f} billion" if (parameters or 0) > 1e8 else parameters,
        ),
        ("type", facts["quantization"] + (f", {bits:.3g} bits at least" if bits else "")),
        ("trained for", f"{trained} tokens" if trained else None),
        ("chat template", _template(facts) if facts["kv_types"] else None),
        ("pooling", facts["pooling"]),
        ("license", facts["license"]),
    ]


def _template(facts: Mapping[str, Any]) -> str:
    if not facts["chat_template"]:
        return "none in the file"
    return "with tools" if facts["tools"] else "without tools"
