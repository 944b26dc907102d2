"""`keepwarm load`, `unload`, `pin`, `unpin` and `release`: which model should come, stay or go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click

from shim.cli.console.context import config_of, entry_of
from shim.cli.console.output import StatusLine, print_json, size, span
from shim.cli.console.progress import WaitingLine, fetch_first
from shim.cli.console.running import is_running
from shim.cli.console.shared_options import Decorated, json_option
from shim.client import Shim


def _command(command: Decorated) -> click.Command:
    """A command about one model, called with the context, the model and `as_json`."""
    return click.command()(click.argument("model")(json_option(click.pass_context(command))))


@_command
def load(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Make a model resident without a request."""
    _bring(ctx, model, lambda shim: shim.load(model), pinned=False, as_json=as_json)


@_command
def pin(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Make a model resident and keep it until `unpin`."""
    _bring(ctx, model, lambda shim: shim.pin(model, persist=True), pinned=True, as_json=as_json)


@_command
def unload(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Unload a model as soon as its last lease ends."""
    with _running(ctx, model) as shim:
        gone = shim is None or shim.unload(model)
    if as_json:
        print_json({"model": model, "gone": gone})
    elif shim is None:
        click.echo(f"No keeper runs, so {model} is not resident.")
    else:
        click.echo(f"{model} is gone." if gone else f"{model} is evicted when its leases end.")


@_command
def unpin(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Let a pinned model be evicted again."""
    with _running(ctx, model) as shim:
        if shim is not None:
            shim.unpin(model)
    _say_hint(model, "may be evicted again", told=shim is not None, as_json=as_json)


@_command
def release(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Tell the keeper that a model may be evicted first."""
    with _running(ctx, model) as shim:
        if shim is not None:
            shim.release(model)
    _say_hint(
        model, "is evicted first when bytes are needed", told=shim is not None, as_json=as_json
    )


def _say_hint(model: str, what: str, *, told: bool, as_json: bool) -> None:
    if as_json:
        print_json({"model": model, "told": told})
    else:
        click.echo(f"{model} {what}." if told else f"No keeper runs, so {model} is not resident.")


def _running(ctx: click.Context, model: str) -> AbstractContextManager[Shim | None]:
    """A shim on the running keeper, or None. No keeper is started only to hear that a model may go."""
    config = config_of(ctx, uses=())
    entry_of(config, model)
    return Shim(config, inline=False) if is_running() else nullcontext()


def _bring(
    ctx: click.Context,
    model: str,
    ask: Callable[[Shim], Mapping[str, Any]],
    *,
    pinned: bool,
    as_json: bool,
) -> None:
    config = config_of(ctx)
    entry = entry_of(config, model)
    line = StatusLine()
    fetch_first(line, entry)
    with Shim(config, inline=False) as shim, WaitingLine(line, model, shim.runtime):
        told = ask(shim)
    outcome = bring_json(model, told, pinned=pinned)
    if as_json:
        print_json(outcome)
    elif entry.remote:
        click.echo(f"{model} runs at {entry.url}; there is nothing to load.")
    else:
        click.echo(_sentence(outcome))


def bring_json(model: str, told: Mapping[str, Any], *, pinned: bool) -> dict[str, Any]:
    """What `load --json` and `pin --json` print. A remote model is never resident."""
    load = told.get("load")
    return {
        "model": model,
        "resident": bool(told),
        "pinned": pinned and bool(told),
        "cold": bool(told.get("cold")),
        "load_s": (load["end_ns"] - load["start_ns"]) / 1e9 if load else 0.0,
        "storage": load["storage"] if load else "warm",
        "bytes": load["bytes"] if load else None,
        "evicted": [row["model"] for row in told.get("evictions", ())],
    }


def _sentence(outcome: Mapping[str, Any]) -> str:
    kept = " and pinned" if outcome["pinned"] else ""
    if not outcome["cold"]:
        return f"{outcome['model']} was resident already{', and is pinned now' if kept else ''}."
    text = (
        f"{outcome['model']} is resident{kept}: {size(outcome['bytes'])}, loaded in "
        f"{span(outcome['load_s'])} ({outcome['storage']})"
    )
    return f"{text}; evicted {', '.join(outcome['evicted'])}." if outcome["evicted"] else f"{text}."
