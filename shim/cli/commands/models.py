"""`keepwarm load`, `unload`, `stop`, `pin`, `unpin` and `release`: which model should come, stay or go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click

from shim.cli.console.at_model import at_model
from shim.cli.console.chosen_model import ChosenModel, choose
from shim.cli.console.output import print_json, size, span
from shim.cli.console.running import engine_row, is_running
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import Decorated, json_option, model_argument
from shim.client import Shim
from shim.paths import runtime_dir
from shim.wire.fingerprint import called
from shim.wire.launch import running_connection


def _command(command: Decorated) -> click.Command:
    """A command about one model, called with the context, the model and `as_json`."""
    return click.command()(model_argument(json_option(click.pass_context(command))))


@_command
def load(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Make a model resident without a request."""
    _bring(ctx, model, Shim.load, pinned=False, as_json=as_json)


@_command
def pin(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Make a model resident and keep it until `unpin`."""
    _bring(ctx, model, partial(Shim.pin, persist=True), pinned=True, as_json=as_json)


@_command
def unload(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Unload a model as soon as its last lease ends."""
    chosen = choose(ctx, model, uses=())
    model = chosen.model
    with _running(chosen) as shim:
        gone = shim is None or shim.unload(model)
    if as_json:
        print_json({"model": model, "gone": gone})
    elif shim is None:
        say(f"No keeper runs, so {model} is not resident.")
    else:
        say(f"{model} is gone." if gone else f"{model} is evicted when its leases end.")


@_command
def stop(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Unload a model now; one that is in use, when the last request that uses it ends.

    MODEL is a name, or the path of a file that the keeper has. A pinned model is refused: `keepwarm
    unpin` it first. `keepwarm keeper stop` ends the keeper with all models.

    Example: keepwarm stop writer
    """
    chosen = choose(ctx, model, uses=())
    outcome, users = (
        ("remote", [])
        if chosen.entry.remote
        else _stopped(called(chosen.config, chosen.model), runtime_dir())
    )
    if as_json:
        print_json({"model": chosen.model, "outcome": outcome, "processes": users})
        return
    said = {
        "remote": f"{model} runs at {chosen.entry.url}; keepwarm does not hold it.",
        "absent": f"{model} is not loaded.",
        "gone": f"{model} is unloaded.",
        "leaving": f"{model} is in use by {_processes(users)}; it leaves when they are done.",
    }
    say(said[outcome])


def _stopped(said: str, runtime: Path) -> tuple[str, list[int]]:
    """What came of the wish to unload a model, and the processes that use it.

    Args:
        said: what the keeper is asked for.
        runtime: the keeper's folder.
    """
    keeper = running_connection(runtime)
    if keeper is None:
        return "absent", []
    with closing(keeper):
        row = engine_row(keeper.ask("status"), said)
        if row is None or row["state"] in ("absent", "failed"):
            return "absent", []
        if not row["leases"] or row["pinned"]:
            gone = keeper.ask("hint", kind="unload", model=said)["gone"]
            return ("gone" if gone else "leaving"), []
        # An answer would come once it is gone; the keeper reads this before the next question.
        keeper.tell("hint", kind="unload", model=said)
        keeper.ask("status")
        return "leaving", sorted({lease["pid"] for lease in row["leases"] if lease["pid"]})


def _processes(pids: list[int]) -> str:
    named = ", ".join(map(str, pids)) or "a program that has ended"
    return f"process{'es' if len(pids) > 1 else ''} {named}"


@_command
def unpin(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Let a pinned model be evicted again."""
    _hint(ctx, model, Shim.unpin, "may be evicted again", as_json=as_json)


@_command
def release(ctx: click.Context, model: str, *, as_json: bool) -> None:
    """Tell the keeper that a model may be evicted first."""
    _hint(ctx, model, Shim.release, "is evicted first when bytes are needed", as_json=as_json)


def _hint(
    ctx: click.Context, model: str, tell: Callable[[Shim, str], None], what: str, *, as_json: bool
) -> None:
    chosen = choose(ctx, model, uses=())
    model = chosen.model
    with _running(chosen) as shim:
        if shim is not None:
            tell(shim, model)
    if as_json:
        print_json({"model": model, "told": shim is not None})
    else:
        say(f"No keeper runs, so {model} is not resident." if shim is None else f"{model} {what}.")


def _running(chosen: ChosenModel) -> AbstractContextManager[Shim | None]:
    """A shim on the running keeper, or None. No keeper is started only to hear that a model may go."""
    return Shim(chosen.config, inline=False) if is_running() else nullcontext()


def _bring(
    ctx: click.Context,
    model: str,
    ask: Callable[[Shim, str], Mapping[str, Any]],
    *,
    pinned: bool,
    as_json: bool,
) -> None:
    with at_model(choose(ctx, model)) as there:
        told = ask(there.shim, there.model)
    outcome = bring_json(there.model, told, pinned=pinned)
    if as_json:
        print_json(outcome)
    elif there.entry.remote:
        say(f"{there.model} runs at {there.entry.url}; there is nothing to load.")
    else:
        say(_sentence(outcome))


def bring_json(model: str, told: Mapping[str, Any], *, pinned: bool) -> dict[str, Any]:
    """What `load --json` and `pin --json` print. A remote model is never resident."""
    load, here = told.get("load"), not told.get("remote")
    return {
        "model": model,
        "resident": here,
        "pinned": pinned and here,
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
