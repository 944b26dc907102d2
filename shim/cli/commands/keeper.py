"""`keepwarm keeper`: start, stop and watch the background keeper."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from backends.machine.files.file_locks import KEEPER_LOCK, is_held
from budget.errors import KeeperUnavailable
from shim.cli.console.context import config_of
from shim.cli.console.output import print_json, span
from shim.cli.console.running import ask_running
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option, log_options
from shim.paths import keeper_socket, log_file, runtime_dir, stderr_file
from shim.wire.launch import start as start_keeper
from shim.wire.launch import starting
from shim.wire.silence import holds_keeper_lock
from shim.wire.start_order import InForce

STOP_LIMIT_S: Final = 30.0
FOLLOW_EVERY_S: Final = 0.2
_TAIL_BYTES: Final = 1 << 20


@click.group("keeper")
def keeper_group() -> None:
    """Start, stop and watch the background keeper.

    The first request that needs a keeper starts it. Such a keeper ends after [keeper] idle_exit
    without a client. A keeper that `keeper start` started stays until it is stopped.
    """


@keeper_group.command("start")
@json_option
@click.pass_context
def start(ctx: click.Context, *, as_json: bool) -> None:
    """Start the keeper, or make the running one stay until it is stopped."""
    config = config_of(ctx)
    runtime = runtime_dir()
    begun = ask_running("stay", runtime=runtime) is None
    if begun:
        with starting(runtime):
            begun = ask_running("stay", runtime=runtime) is None
            if begun:
                start_keeper(runtime, config, automatic=False)
    state = {**keeper_state(runtime), "started": begun}
    if as_json:
        print_json(state)
    else:
        what = "The keeper runs" if begun else "A keeper runs already"
        say(f"{what}: process {state['pid']}, in {runtime}.")


@keeper_group.command("stop")
@json_option
def stop(*, as_json: bool) -> None:
    """Stop the keeper and its engines, and wait for their end."""
    runtime = runtime_dir()
    told = ask_running("stop", runtime=runtime)
    if told is None and not is_held(runtime / KEEPER_LOCK):
        # A keeper that crashed leaves its configuration to the next keeper; `stop` ends that as well.
        InForce(runtime).remove()
    pid = None if told is None else int(told["pid"])
    if pid is not None:
        wait_gone(pid, runtime, STOP_LIMIT_S)
    if as_json:
        print_json({"stopped": pid is not None, "pid": pid})
    else:
        say("No keeper runs." if pid is None else f"The keeper (process {pid}) ended.")


@keeper_group.command("status")
@json_option
def status(*, as_json: bool) -> None:
    """Say whether a keeper runs, where, and with which configuration."""
    state = keeper_state(runtime_dir())
    if as_json:
        print_json(state)
    elif not state["running"]:
        say(f"No keeper runs in {state['runtime']}.")
    else:
        say(f"process {state['pid']}, up {span(state['uptime_s'])}")
        say(f"configuration {state['config'] or 'given in code'}")
        say(f"socket {state['socket']}")
        say(f"log {state['log']}")


def keeper_state(runtime: Path) -> dict[str, Any]:
    """What `keeper status --json` prints."""
    found = ask_running("status", runtime=runtime)
    about = found["keeper"] if found else {}
    return {
        "running": found is not None,
        "pid": about.get("pid"),
        "uptime_s": about.get("uptime_s"),
        "config": about.get("config"),
        "runtime": runtime,
        "socket": keeper_socket(runtime),
        "log": log_file(),
    }


def wait_gone(pid: int, runtime: Path, limit_s: float) -> None:
    """Return when a process has ended.

    Raises:
        KeeperUnavailable: it has not within `limit_s`.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([handle], [], [], limit_s)
    finally:
        os.close(handle)
    if not ended:
        ours = holds_keeper_lock(pid, runtime)
        raise KeeperUnavailable(
            f"The keeper (process {pid}) did not end within {limit_s:.0f} s.",
            hint="See `keepwarm keeper log`"
            + (f"; `kill -9 {pid}` ends it and its engines." if ours else "."),
            pid=pid,
        )


@keeper_group.command("log")
@log_options
def log(lines: int, *, follow: bool) -> None:
    """Print the end of the keeper's log."""
    print_keeper_log(lines, follow=follow)


def print_keeper_log(lines: int, *, follow: bool) -> None:
    """Print the last lines of the keeper's stderr and log; go on with new ones if `follow`."""
    path = log_file()
    errors = stderr_file()
    if not path.exists() and not errors.exists():
        say(f"There is no log yet. A keeper will write it to {path}.", err=True)
    for line in last_lines(errors, lines):
        say(f"stderr: {line.expandtabs()}")
    # Looked at first, so that no line written while the end is printed is lost.
    place = path.stat() if path.exists() else None
    for line in last_lines(path, lines, up_to=place.st_size if place else None):
        click.echo(line)
    if follow:
        for text in additions(path, place):
            click.echo(text, nl=False)


def last_lines(path: Path, count: int, *, up_to: int | None = None) -> list[str]:
    """The last lines of a file, or of its first `up_to` bytes; none when there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END) if up_to is None else up_to
            start = max(0, size - _TAIL_BYTES)
            file.seek(start)
            text = file.read(size - start).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-count:] if count else []


def additions(path: Path, place: os.stat_result | None) -> Iterator[str]:
    """Everything added to a file since `place`, without an end. A new file is read from its start."""
    offset = place.st_size if place else 0
    while True:
        time.sleep(FOLLOW_EVERY_S)
        if not path.exists():
            continue
        with path.open("rb") as file:
            now = os.fstat(file.fileno())
            if place is None or now.st_ino != place.st_ino or now.st_size < offset:
                offset = 0
            place = now
            file.seek(offset)
            added = file.read()
            offset += len(added)
        if added:
            yield added.decode("utf-8", errors="replace")
