"""`keepwarm embed`: texts in, one vector each out."""

from __future__ import annotations

import math

import click

from budget.errors import InvalidRequest
from shim.cli.commands.asking.question import asked, reply_json
from shim.cli.console.chosen_model import choose
from shim.cli.console.output import print_json, print_table
from shim.cli.console.shared_options import json_option, model_argument, read_stdin


@click.command()
@model_argument
@click.argument("texts", nargs=-1, metavar="TEXT...")
@json_option
@click.pass_context
def embed(ctx: click.Context, model: str, texts: tuple[str, ...], *, as_json: bool) -> None:
    """Turn texts into vectors.

    Without TEXT, or with - as the only one, every line of stdin is a text, and a blank line keeps its
    place without a vector. The table shows how each vector begins; --json prints the whole vectors.
    """
    texts = () if texts == ("-",) else texts
    chosen = choose(ctx, model, "embedder")
    batch = list(texts) or _lines()
    said = [text for text in batch if text or texts]
    reply = asked(chosen, "embed", lambda shim, model: shim.embed(model, said))
    found = iter(reply.vectors)
    # None stands for a blank line.
    vectors = [next(found) if text or texts else None for text in batch]
    if as_json:
        print_json(reply_json(reply, vectors=vectors))
    else:
        print_table(
            ("text", "dimensions", "norm", "begins"),
            [(text, *_overview(v)) for text, v in zip(batch, vectors, strict=True)],
            right=("dimensions", "norm"),
        )


def _lines() -> list[str]:
    """The lines of stdin; blank ones are empty."""
    lines = [line.removesuffix("\r") if line.strip() else "" for line in read_stdin().split("\n")]
    if not lines[-1]:
        # The last line ended, or there is none.
        lines.pop()
    if not any(lines):
        raise InvalidRequest("There is no text to embed.", hint='Try: keepwarm embed MODEL "text".')
    return lines


def _overview(vector: tuple[float, ...] | None) -> tuple[int | None, str, str]:
    if vector is None:
        return None, "", ""
    norm = math.sqrt(sum(x * x for x in vector))
    return len(vector), f"{norm:.4f}", ", ".join(f"{x:+.4f}" for x in vector[:4])
