"""What the commands that ask a model once do around their question."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol, TypeVar

import click

from shim.cli.commands.asking.chat import residency_json, temperature_of
from shim.cli.console.chosen_model import ChosenModel
from shim.cli.console.context import config_of, entry_of
from shim.cli.console.output import StatusLine
from shim.cli.console.progress import WaitingLine, fetch_first
from shim.cli.console.stopping import asked_again
from shim.cli.console.traced import traced
from shim.client import Shim
from shim.replies import EmbeddingReply, Residency, VerbReply

_Reply = TypeVar("_Reply", bound=VerbReply | EmbeddingReply)


class _Ask(Protocol):
    """Asks a shim for a model by its name there, once it is there; returns the reply."""

    def __call__(self, question: Callable[[Shim, str], _Reply], /) -> _Reply: ...


def named(ctx: click.Context, model: str) -> ChosenModel:
    """A model of the configuration.

    Raises:
        UnknownModel: there is none of that name.
    """
    config = config_of(ctx)
    entry_of(config, model)
    return ChosenModel(config, model)


@contextmanager
def asking(chosen: ChosenModel, verb: str) -> Iterator[_Ask]:
    """The configuration, the trace and the line that waits."""
    line = StatusLine()
    chosen = chosen.taken_in(line)
    config, model, entry = chosen.config, chosen.model, chosen.entry
    fetch_first(line, entry)
    last: list[Residency] = []
    with (
        Shim(config, inline=False) as shim,
        traced(config, verb),
        WaitingLine(line, model, shim.config, shim.runtime),
    ):

        def ask(question: Callable[[Shim, str], _Reply]) -> _Reply:
            once = partial(question, shim, model)
            reply = once() if entry.remote else asked_again(once, line.clear)
            last.append(reply.residency)
            return reply

        yield ask
    line.last(" · ".join([model, *temperature_of(last[0])]))


def reply_json(reply: VerbReply | EmbeddingReply, **told: Any) -> dict[str, Any]:
    """A reply as `--json` prints it, with what it tells."""
    return {
        "model": reply.model,
        **told,
        "usage": asdict(reply.usage),
        "residency": residency_json(reply.residency),
        "total_s": reply.total_s,
    }
