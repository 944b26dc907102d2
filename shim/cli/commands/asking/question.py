"""A model that is asked once: the question, and what is said of its reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

import click

from backends.kinds import Verb
from shim.cli.console.at_model import at_model
from shim.cli.console.chosen_model import ChosenModel
from shim.cli.console.context import config_of
from shim.cli.console.output import span
from shim.client import Shim
from shim.replies import Answer, Residency

_Reply = TypeVar("_Reply", bound=Answer)


def named(ctx: click.Context, model: str) -> ChosenModel:
    """A model of the configuration.

    Raises:
        UnknownModel: there is none of that name.
    """
    config = config_of(ctx)
    config.entry(model)
    return ChosenModel(config, model)


def asked(chosen: ChosenModel, verb: Verb, question: Callable[[Shim, str], _Reply]) -> _Reply:
    """The reply of a model; a line tells what it waits for, and then whether the model was warm."""
    with at_model(chosen, verb) as there:
        reply = there.ask(question)
    there.line.last(" · ".join([there.model, *temperature_of(reply.residency)]))
    return reply


def reply_json(reply: Answer, **told: Any) -> dict[str, Any]:
    """A reply as `--json` prints it, with what it tells."""
    return {
        "model": reply.model,
        **told,
        "usage": asdict(reply.usage),
        "residency": asdict(reply.residency),
        "total_s": reply.total_s,
    }


def temperature_of(residency: Residency) -> list[str]:
    """`warm`, or `cold, loaded in 0.42 s (staged)` and which models were evicted; empty for an endpoint."""
    if not residency.engine:
        return []
    if not residency.cold:
        return ["warm"]
    loaded = f"cold, loaded in {span(residency.load_s)} ({residency.storage})"
    return [loaded, *([f"evicted {', '.join(residency.evicted)}"] if residency.evicted else [])]
