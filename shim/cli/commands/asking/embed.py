"""`keepwarm embed`: texts in, one vector each out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from budget.errors import InvalidRequest
from shim.cli.commands.asking.chat import residency_json, temperature_of
from shim.cli.console.chosen_model import choose
from shim.cli.console.output import StatusLine, print_json, print_table
from shim.cli.console.progress import WaitingLine, fetch_first
from shim.cli.console.shared_options import json_option, model_argument, read_stdin
from shim.cli.console.stopping import asked_again
from shim.cli.console.traced import traced
from shim.client import Shim
from shim.replies import EmbeddingReply


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
    line = StatusLine()
    chosen = chosen.taken_in(line)
    config, model, entry = chosen.config, chosen.model, chosen.entry
    fetch_first(line, entry)
    with (
        Shim(config, inline=False) as shim,
        traced(config, "embed"),
        WaitingLine(line, model, shim.config, shim.runtime),
    ):
        ask = partial(shim.embed, model, [text for text in batch if text or texts])
        reply = ask() if entry.remote else asked_again(ask, line.clear)
    found = iter(reply.vectors)
    vectors = [next(found) if text or texts else None for text in batch]
    if as_json:
        print_json(reply_json(reply, vectors))
    else:
        print_table(
            ("text", "dimensions", "norm", "begins"),
            [(text, *_overview(v)) for text, v in zip(batch, vectors, strict=True)],
            right=("dimensions", "norm"),
        )
    line.last(" · ".join([model, *temperature_of(reply.residency)]))


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


def reply_json(
    reply: EmbeddingReply, vectors: Sequence[tuple[float, ...] | None]
) -> dict[str, Any]:
    """A reply as `embed --json` prints it, with None for a blank line."""
    return {
        "model": reply.model,
        "vectors": [None if vector is None else list(vector) for vector in vectors],
        "usage": asdict(reply.usage),
        "residency": residency_json(reply.residency),
        "total_s": reply.total_s,
    }
