"""`keepwarm chat`: one prompt, and its answer as it comes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from budget.errors import InvalidRequest
from shim.calls.options.own_options import MAX_DEADLINE_S, MAX_PRIORITY
from shim.cli.commands.asking.conversation import Conversation
from shim.cli.commands.asking.printed_answer import PrintedAnswer
from shim.cli.commands.asking.question import temperature_of
from shim.cli.console.at_model import at_model
from shim.cli.console.chosen_model import choose
from shim.cli.console.output import StatusLine, print_json, span
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import (
    json_option,
    model_argument,
    read_stdin,
    sampling_options,
)
from shim.replies import Reply

_KEYS: Final = (
    *("model", "content", "reasoning", "finish_reason", "usage", "timings", "residency"),
    *("ttft_s", "total_s", "tokens_per_s", "relaxed", "warnings"),
)


@click.command()
@model_argument
@click.argument("prompt", required=False)
@click.option("--system", default="", help="A system message before the prompt.")
@sampling_options
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="The answer ends before this text. Repeatable."
)
@click.option(
    "--json-schema",
    metavar="FILE|JSON",
    callback=lambda _ctx, _option, given: given and _schema(given),
    help="The answer is JSON that this schema describes: a file, or the schema itself.",
)
@click.option(
    "--priority",
    type=click.IntRange(-MAX_PRIORITY, MAX_PRIORITY),
    help="Higher priorities are served first. Default: the model's.",
)
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True, max=MAX_DEADLINE_S),
    metavar="SECONDS",
    help="How long the whole request may take.",
)
@click.option("--no-stream", is_flag=True, help="Print the answer only when it is complete.")
@json_option
@click.pass_context
def chat(
    ctx: click.Context,
    /,
    model: str,
    prompt: str | None,
    system: str,
    *,
    no_stream: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask a model and print its answer as it comes.

    MODEL is a name of the configuration, or the path of a GGUF file. Without PROMPT, or with -, the
    command reads the prompt from stdin. Ctrl-C ends the answer and the lease of the model. Ctrl-Z
    ends the lease until the command is continued.
    """
    chosen = choose(ctx, model)
    messages = Conversation(system).asked(_prompt(prompt))
    given = {name: value for name, value in options.items() if value not in (None, ())}
    with at_model(chosen, "chat") as there:
        if no_stream:
            reply = there.ask(lambda shim, model: shim.chat(model, messages, **given))
            if not as_json:
                click.echo(reply.content, color=True)
        else:
            ask = partial(there.shim.stream, there.model, messages, **given)
            answer = PrintedAnswer(ask, there.waiting, quiet=as_json)
            reply = answer.read(stops=not there.entry.remote)
    if as_json:
        print_json(reply_json(reply))
    say_end(there.line, reply)


def say_end(line: StatusLine, reply: Reply) -> None:
    """Say what is to be said of a reply once it is printed: how fast it was, and its warnings."""
    line.last(summary(reply))
    for warning in warnings_of(reply):
        say(f"keepwarm: warning: {warning}", err=True)


def warnings_of(reply: Reply) -> list[str]:
    """One sentence for each thing that the reply does not honour."""
    dropped = [
        f"The engine does not hold answers to {place} of the schema." for place in reply.relaxed
    ]
    return [*reply.warnings, *dropped]


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    if sys.stdin.isatty():
        click.echo("Type the prompt and end it with Ctrl-D on a line of its own:", err=True)
    text = read_stdin().strip()
    if not text:
        raise InvalidRequest(
            "The prompt on stdin is empty.", hint='Try: keepwarm chat MODEL "a prompt".'
        )
    return text


def _schema(given: str) -> dict[str, Any]:
    """The schema in a file, or written where the file's name would be."""
    is_file = not given.lstrip().startswith("{")
    what = f"--json-schema {given}" if is_file else "The schema that --json-schema gives"
    try:
        schema = json.loads(Path(given).read_bytes() if is_file else given)
    except OSError as error:
        raise InvalidRequest(
            f"{what} cannot be read: {error.strerror}.",
            hint='Name a file, or write the schema itself: --json-schema \'{"type": "object"}\'.',
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} is not JSON: {error}.") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{what} holds no JSON object.")
    return schema


def reply_json(reply: Reply) -> dict[str, Any]:
    """A reply as `chat --json` prints it."""
    fields = {**asdict(reply), "tokens_per_s": reply.tokens_per_s}
    return {key: fields[key] for key in _KEYS}


def summary(reply: Reply) -> str:
    """One line about a reply: cold or warm, tokens, speed."""
    return " · ".join(
        [
            reply.model,
            *temperature_of(reply.residency),
            *([f"first token after {span(reply.ttft_s)}"] if reply.ttft_s is not None else []),
            f"{reply.usage.completion_tokens} tokens",
            *([f"{reply.tokens_per_s:.1f} tokens/s"] if reply.tokens_per_s else []),
        ]
    )
