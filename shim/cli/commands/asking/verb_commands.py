"""`keepwarm rerank`, `transcribe`, `speak` and `tokenize`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from budget.errors import InvalidRequest
from shim.cli.commands.asking.question import asked, named, reply_json
from shim.cli.console.failure import outside
from shim.cli.console.output import print_json, print_table
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option, model_argument, read_stdin


@click.command()
@model_argument
@click.argument("query")
@click.argument("documents", nargs=-1, metavar="DOCUMENT...")
@click.option("--top", "top_n", type=click.IntRange(1), help="Print at most so many documents.")
@json_option
@click.pass_context
def rerank(
    ctx: click.Context,
    model: str,
    query: str,
    documents: tuple[str, ...],
    *,
    top_n: int | None,
    as_json: bool,
) -> None:
    """Order documents by their relevance for a query, the most relevant first.

    Without DOCUMENT every line of stdin that is not blank is one. `#` is a document's place, from 0.

    Example: keepwarm rerank ranker "what is a cat" "a cat is an animal" "a stone"
    """
    texts = list(documents) or [one for one in read_stdin().splitlines() if one.strip()]
    if not texts:
        raise InvalidRequest("There is no document.", hint="Give some, or one a line on stdin.")
    reply = asked(
        named(ctx, model), "rerank", lambda shim, model: shim.rerank(model, query, texts, top_n)
    )
    if as_json:
        print_json(reply_json(reply, ranked=[asdict(row) for row in reply.ranked]))
        return
    rows = [(row.index, f"{row.score:.4f}", row.document) for row in reply.ranked]
    print_table(("#", "score", "document"), rows, right=("#", "score"))


@click.command()
@model_argument
@click.argument("audio", type=click.Path(path_type=Path))
@click.option("--language", help="The language that is spoken, such as en.")
@click.option("--segments", is_flag=True, help="Print each segment with its times in seconds.")
@json_option
@click.pass_context
def transcribe(
    ctx: click.Context,
    model: str,
    audio: Path,
    *,
    language: str | None,
    segments: bool,
    as_json: bool,
) -> None:
    """Print what is said in an audio file.

    Example: keepwarm transcribe whisper hello.wav --language en
    """
    reply = asked(
        named(ctx, model), "transcribe", lambda shim, model: shim.transcribe(model, audio, language)
    )
    if as_json:
        told: dict[str, Any] = {"text": reply.text, "language": reply.language}
        told["duration_s"] = reply.duration_s
        told["segments"] = [asdict(one) for one in reply.segments]
        print_json(reply_json(reply, **told))
    elif segments:
        rows = [(f"{one.start_s:.2f}", f"{one.end_s:.2f}", one.text) for one in reply.segments]
        print_table(("from", "to", "text"), rows, right=("from", "to"))
    else:
        click.echo(reply.text)


@click.command()
@model_argument
@click.argument("words", nargs=-1, metavar="TEXT...")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The WAV file to write."
)
@click.option("--voice", help="A voice by its name.")
@json_option
@click.pass_context
def speak(
    ctx: click.Context,
    model: str,
    words: tuple[str, ...],
    *,
    out: Path,
    voice: str | None,
    as_json: bool,
) -> None:
    """Speak a text into a WAV file. Without TEXT it is read from stdin.

    Example: keepwarm speak voice "Good morning." --out morning.wav
    """
    text = " ".join(words) or read_stdin()
    reply = asked(named(ctx, model), "speak", lambda shim, model: shim.speak(model, text, voice))
    with outside(f"--out {out}", "written"):
        out.write_bytes(reply.audio)
    told = {"saved": out, "bytes": len(reply.audio), "sample_rate": reply.sample_rate}
    if as_json:
        print_json(reply_json(reply, **told))
    else:
        rate = f", {reply.sample_rate} samples a second" if reply.sample_rate else ""
        say(f"{out}: {len(reply.audio)} bytes{rate}")


@click.command()
@model_argument
@click.argument("words", nargs=-1, metavar="TEXT...")
@click.option("--count", is_flag=True, help="Print the number of tokens alone.")
@json_option
@click.pass_context
def tokenize(
    ctx: click.Context, model: str, words: tuple[str, ...], *, count: bool, as_json: bool
) -> None:
    """Print the ids of a text's tokens. Without TEXT it is read from stdin.

    Example: keepwarm tokenize writer --count "Once upon a time"
    """
    text = " ".join(words) or read_stdin()
    reply = asked(named(ctx, model), "tokenize", lambda shim, model: shim.tokenize(model, text))
    if as_json:
        print_json(reply_json(reply, tokens=reply.tokens, count=len(reply)))
    else:
        say(len(reply) if count else " ".join(map(str, reply.tokens)))
