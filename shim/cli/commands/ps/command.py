"""`keepwarm ps`: what the running keeper holds, does and expects, and what went wrong in it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from budget.errors import KeeperUnavailable
from shim.cli.commands.config.reload import restart_line
from shim.cli.commands.ps.at_ollama import print_ollama, rows_of
from shim.cli.console.context import config_or_defaults
from shim.cli.console.output import console, counted, print_json, print_table, size, sizes, span
from shim.cli.console.running import ask_running, unavailable
from shim.cli.console.said_lines import say, say_all
from shim.cli.console.shared_options import json_option

EVERY_S: Final = 1.0
DECISIONS_SHOWN: Final = 5
USES_SHOWN: Final = 6
NO_KEEPER: Final[Mapping[str, Any]] = {
    "running": False,
    "keeper": None,
    "devices": [],
    "engines": [],
    "queue": [],
    "plans": {},
    "declared": [],
    "prefetch": {},
    "decisions": [],
    "left_out": [],
    "projects": [],
    "references": {},
    "unavailable": {},
    "asleep": [],
}
"""What `ps --json` prints when no keeper runs."""


@click.command()
@click.option("--watch", is_flag=True, help="Print the state again every second, until Ctrl-C.")
@json_option
@click.pass_context
def ps(ctx: click.Context, *, watch: bool, as_json: bool) -> None:
    """Show what is resident, leased, pinned and waiting.

    The command asks the running keeper. It starts no keeper, loads nothing and resets no time-out.
    """
    while True:
        if watch and not as_json:
            console().clear()
        try:
            status = {**read_status(), "ollama": rows_of(config_or_defaults(ctx))}
        except KeeperUnavailable as error:
            if not watch or as_json:
                raise
            # A keeper that starts or answers again is what `--watch` waits for.
            say_all(error)
        else:
            (print_json if as_json else _print)(status)
        if not watch:
            return
        time.sleep(EVERY_S)


def read_status() -> dict[str, Any]:
    """The keeper's status with `running`."""
    status = ask_running("status")
    return dict(NO_KEEPER) if status is None else {"running": True, **status}


def _print(status: Mapping[str, Any]) -> None:
    if not status["running"]:
        click.echo("No keeper runs, so no model is resident. The first request starts one.")
        print_ollama(status["ollama"])
        return
    keeper = status["keeper"]
    say(
        f"keeper {keeper['pid']}, up {span(keeper['uptime_s'])}, "
        f"configuration {keeper['config'] or 'given in code'}"
    )
    if keeper["restart"]:
        say(restart_line(keeper["restart"]))
    print_faults(keeper)
    for part in status["left_out"]:
        say(f"left out until the next `config reload`, because it keeps failing: {part}")
    print_projects(status["projects"])
    _print_devices(status["devices"])
    _print_engines(status["engines"])
    _print_queue(status["queue"])
    print_plans(status["declared"], status["prefetch"])
    print_ollama(status["ollama"])
    names = {engine["id"]: name_of(engine) for engine in status["engines"]}
    _print_decisions(status["decisions"], names)
    _print_unavailable(status["unavailable"])


def _print_unavailable(errors: Mapping[str, Mapping[str, Any]]) -> None:
    for name, error in errors.items():
        click.echo()
        say_all(error["message"], before=f"{name} {unavailable(error)}: ")


def print_faults(keeper: Mapping[str, Any]) -> None:
    """A line for each recurring task that fails now, and for each kind of fault since the start."""
    failing = keeper.get("background", ())
    for row in failing:
        say(
            f"FAILING for {span(row['failing_s'])}: {row['task']} "
            f"({row['failures']} times in a row; {row['text']})"
        )
    names = {row["task"] for row in failing}
    for row in keeper.get("faults", ()):
        if row["kind"] not in names:
            say(
                f"faults: {row['kind']}, {row['count']} since the start, the last "
                f"{span(row['last_s'])} ago: {row['text']} (see the keeper's log)"
            )
    books = keeper.get("books")
    if books is not None:
        said = "they agree" if books["agree"] else f"THEY DO NOT AGREE: {books['text']}"
        say(f"books: checked {span(books['checked_s'])} ago, after an internal error: {said}")


def print_projects(projects: Sequence[Mapping[str, Any]]) -> None:
    """Print each project with its file and its models as the other tables name them.

    With one project every name is that of its own configuration, and nothing is printed.
    """
    if len(projects) < 2:
        return
    click.echo()
    rows = [
        (row["project"], row["file"] or "given in code", ", ".join(sorted(row["names"].values())))
        for row in projects
    ]
    print_table(("project", "configuration", "models"), rows)


def print_plans(declared: Sequence[Mapping[str, Any]], prefetch: Mapping[str, Any]) -> None:
    """Print a row for each plan and a line about loads ahead of requests; nothing where there are none."""
    if declared:
        click.echo()
        rows = [(row["plan"], row["pid"], _uses(row), row["left"]) for row in declared]
        print_table(("plan", "process", "next uses", "left"), rows, right=("process", "left"))
    if declared or prefetch["loads"] or prefetch["staged_bytes"]:
        click.echo()
        say(f"looking ahead ({prefetch['mode']}): {'; '.join(_done(prefetch))}")


def _uses(plan: Mapping[str, Any]) -> str:
    shown = [f"{use['model']} ({use['state']})" for use in plan["next"][:USES_SHOWN]]
    return ", ".join([*shown, *(["..."] if plan["left"] > len(shown) else [])])


def _done(prefetch: Mapping[str, Any]) -> list[str]:
    said = [f"{counted(prefetch['loads'], 'load')}, {prefetch['used']} used"]
    said.append(f"{size(prefetch['staged_bytes'])} staged, {size(prefetch['wasted_bytes'])} wasted")
    if prefetch["staging"]:
        said.append(f"reading {prefetch['staging']}")
    if prefetch["cores_are_busy"]:
        said.append("loads wait for a free core")
    return said


def _print_devices(devices: list[dict[str, Any]]) -> None:
    click.echo()
    rows = [
        (
            d["device"],
            size(d["limit_bytes"]),
            size(d["reserved_bytes"]),
            size(d["protected_bytes"]),
            size(d["evictable_bytes"]),
            size(d["free_bytes"]),
            _note(d),
        )
        for d in devices
    ]
    figures = ("limit", "reserved", "protected", "evictable", "free")
    print_table(("device", *figures, ""), rows, right=figures)


def _note(device: Mapping[str, Any]) -> str:
    notes = []
    if device["over_limit"]:
        notes.append("OVER ITS LIMIT: nothing is admitted")
    elif device["ceiling_bytes"] < device["limit_bytes"]:
        notes.append(f"other programs leave {size(device['ceiling_bytes'])}")
    if device["low_memory"]:
        notes.append("LOW MEMORY: less is free than the reserve")
    return "; ".join(notes)


def _print_engines(engines: list[dict[str, Any]]) -> None:
    click.echo()
    rows = [
        (
            name_of(e),
            state_of(e),
            "yes" if e["pinned"] else "",
            f"{len(e['leases'])}/{e['slots']}",
            e["waiting"] or "",
            sizes(e["bytes"]),
            sizes(e["measured"]) if e["measured"] else "",
            span(e["loaded_s"]),
            _leaves(e),
        )
        for e in engines
    ]
    print_table(
        ("model", "state", "pinned", "leases", "waiting", "booked", "measured", "loaded", "leaves"),
        rows,
        right=("leases", "waiting", "booked", "measured", "loaded"),
    )
    for engine in engines:
        if engine["placement"] and engine["bytes"]:
            say(f"{name_of(engine)}: {engine['placement']}")


def name_of(engine: Mapping[str, Any]) -> str:
    """What an engine's row is called: its models, or its id where it has none."""
    return ", ".join(engine["models"]) or str(engine["id"])


def state_of(engine: Mapping[str, Any]) -> str:
    """The state of an engine's row, with how far it is or for how long."""
    state = str(engine["state"])
    if state == "loading" and engine["load_fraction"]:
        return f"loading {engine['load_fraction']:.0%}"
    if state == "idle":
        return f"idle {span(engine['idle_s'])}"
    if state == "failed" and engine["last_error"]:
        return f"failed: {engine['last_error']['message'].splitlines()[0]}"
    return state


def _leaves(engine: Mapping[str, Any]) -> str:
    if engine["draining_for"]:
        return f"for {engine['draining_for']}"
    if engine["keep_alive_left_s"] is not None:
        return f"in {span(engine['keep_alive_left_s'])}"
    return "when idle" if engine["leaves_when_idle"] else ""


def _print_queue(queue: list[dict[str, Any]]) -> None:
    if not queue:
        return
    click.echo()
    rows = [
        (
            q["model"],
            q["want"],
            q["priority"],
            span(q["waited_s"]),
            q["waits_for"],
            q["rank_reason"],
        )
        for q in queue
    ]
    columns = ("queue", "wants", "priority", "waited", "waits for", "ranked")
    print_table(columns, rows, right=("priority", "waited"))


def _print_decisions(decisions: list[dict[str, Any]], names: Mapping[str, str]) -> None:
    if not decisions:
        return
    click.echo()
    now = time.monotonic()
    rows = [
        (
            f"{span(max(0.0, now - d['at']))} ago",
            names.get(d["wanted"], d["wanted"]),
            d["reason"],
            sizes(d["requested"]),
            sizes(d["free"]),
            ", ".join(names.get(v, v) for v in d["victims"]),
            ", ".join(names.get(v, v) for v in d["draining"]),
            d["followed"] or d["policy"],
        )
        for d in decisions[:DECISIONS_SHOWN]
    ]
    columns = ("decision", "for", "reason", "requested", "free", "evicted", "draining", "followed")
    print_table(columns, rows, right=("decision", "requested", "free"))
