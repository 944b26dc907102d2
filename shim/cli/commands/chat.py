"""`keepwarm chat`: one prompt, and its answer as it comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from budget.errors import InvalidRequest
from shim.cli.console.context import config_of, entry_of
from shim.cli.console.output import StatusLine, print_json, span
from shim.cli.console.progress import WaitingLine, fetch_first
from shim.cli.console.shared_options import json_option, read_stdin
from shim.cli.console.stopping import Stopped, Stops, asked_again
from shim.cli.console.traced import traced
from shim.client import Shim
from shim.replies import Reply, Residency
from shim.streams import ReplyStream


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="A system message before the prompt.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="The answer has at most this many tokens."
)
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="0 always samples the likeliest token."
)
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="The answer ends before this text. Repeatable."
)
@click.option(
    "--json-schema",
    type=click.Path(path_type=Path),
    metavar="FILE",
    callback=lambda _ctx, _option, file: file and _schema(file),
    help="The answer is JSON that this schema describes.",
)
@click.option(
    "--priority", type=int, help="Higher priorities are served first. Default: the model's."
)
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True),
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
    system: str | None,
    *,
    no_stream: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask a model and print its answer as it comes.

    Without PROMPT, or with -, the command reads the prompt from stdin. Ctrl-C ends the answer and
    the lease of the model. Ctrl-Z ends the lease until the command is continued.
    """
    config = config_of(ctx)
    entry = entry_of(config, model)
    messages = _messages(system, _prompt(prompt))
    given = {name: value for name, value in options.items() if value not in (None, ())}
    line = StatusLine()
    fetch_first(line, entry)
    with (
        Shim(config, inline=False) as shim,
        traced(config, "chat"),
        WaitingLine(line, model, shim.runtime) as waiting,
    ):
        if no_stream:
            whole = partial(shim.chat, model, messages, **given)
            reply = whole() if entry.remote else asked_again(whole, line.clear)
            if not as_json:
                click.echo(reply.content, color=True)
        else:
            ask = partial(shim.stream, model, messages, **given)
            reply = _Answer(ask, waiting, quiet=as_json).read(stops=not entry.remote)
    if as_json:
        print_json(reply_json(reply))
    line.last(summary(reply))
    for warning in warnings_of(reply):
        click.echo(f"keepwarm: warning: {warning}", err=True)


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


def _schema(file: Path) -> dict[str, Any]:
    """The schema in a file."""
    try:
        schema = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"--json-schema {file} cannot be read: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(f"--json-schema {file} holds no JSON object.")
    return schema


def _messages(system: str | None, prompt: str) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


class _Answer:
    """Prints the pieces of an answer as they come, unless `quiet`.

    When Ctrl-Z breaks the answer off, its lease ends before the process stops. When the process is
    continued, the answer goes on where it was. An answer that cannot go on is asked for again.
    """

    def __init__(
        self, ask: Callable[[], ReplyStream], waiting: WaitingLine, *, quiet: bool
    ) -> None:
        self._ask = ask
        self._waiting = waiting
        self._quiet = quiet
        self._stream: ReplyStream | None = None
        self._printed = 0
        self._last = ""
        self._stops = Stops()

    def read(self, *, stops: bool) -> Reply:
        """Print the answer to its end. `stops`: the answer holds a lease, which Ctrl-Z has to end."""
        try:
            while True:
                try:
                    with self._stops.raised() if stops else nullcontext():
                        return self._read()
                except Stopped:
                    self._stops.stop_here()
        finally:
            if not self._quiet and self._last and not self._last.endswith("\n"):
                click.echo()

    def _read(self) -> Reply:
        if self._stream is not None:
            with suppress(InvalidRequest):
                return self._stream.reply
        with self._begun() as stream:
            # These pieces came before the stop and were not printed.
            self._print(stream.text[self._printed :])
            for piece in stream:
                self._print(str(piece))
            return stream.reply

    def _begun(self) -> ReplyStream:
        # An answer of which nothing is printed yet begins anew: its text alone may be more tokens than
        # were generated, and leave less room for the rest.
        rest = self._stream.go_on() if self._stream is not None and not self._quiet else None
        if rest is None and self._printed:
            if not self._quiet:
                told = "the answer was stopped in the middle and is asked for again:"
                click.echo(f"\nkeepwarm: {told}", err=True)
            self._printed = 0
        self._stream = rest or self._ask()
        return self._stream

    def _print(self, text: str) -> None:
        if not text:
            return
        with self._stops.held_off():
            self._waiting.end()
            self._printed += len(text)
            self._last = text
            if not self._quiet:
                # In a pipe an answer stays as it is, with codes of terminals that are in it.
                click.echo(text, nl=False, color=True)


def reply_json(reply: Reply) -> dict[str, Any]:
    """A reply as `chat --json` prints it."""
    return {
        "model": reply.model,
        "content": reply.content,
        "reasoning": reply.reasoning,
        "finish_reason": reply.finish_reason,
        "usage": asdict(reply.usage),
        "timings": asdict(reply.timings) if reply.timings else None,
        "residency": residency_json(reply.residency),
        "ttft_s": reply.ttft_s,
        "total_s": reply.total_s,
        "tokens_per_s": reply.tokens_per_s,
        "relaxed": list(reply.relaxed),
        "warnings": list(reply.warnings),
    }


def residency_json(residency: Residency) -> dict[str, Any]:
    """A residency outcome as `--json` prints it."""
    return {**asdict(residency), "evicted": list(residency.evicted)}


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


def temperature_of(residency: Residency) -> list[str]:
    """`warm`, or `cold, loaded in 0.42 s (staged)` and which models were evicted; empty for an endpoint."""
    if not residency.engine:
        return []
    if not residency.cold:
        return ["warm"]
    loaded = f"cold, loaded in {span(residency.load_s)} ({residency.storage})"
    return [loaded, *([f"evicted {', '.join(residency.evicted)}"] if residency.evicted else [])]
