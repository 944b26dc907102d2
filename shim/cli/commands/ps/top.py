"""`keepwarm top`: what the keeper holds and does, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from backends.foreign.shown_text import one_line
from backends.machine.processes import process_state
from budget.errors import KeeperUnavailable
from shim.cli.commands.ps.command import name_of, read_status, state_of
from shim.cli.console.output import console, print_json, print_table, size, span
from shim.cli.console.said_lines import say
from shim.cli.console.shared_options import json_option

EVERY_S: Final = 1.0
_WIDE: Final = 90
_MIDDLE: Final = 60
_QUEUE_SHOWN: Final = 5
_ORDER: Final = ("leased", "loading", "evicting", "idle", "failed", "absent")
_STYLES: Final = {"leased": "green", "loading": "yellow", "evicting": "yellow", "failed": "red"}
_COLUMNS: Final = ("model", "state", "cpu", "slots", "waiting", "booked", "measured", "uses")
_OF_MIDDLE: Final = ("model", "state", "cpu", "waiting", "booked")
_OF_NARROW: Final = ("model", "state", "booked")


@click.command()
@json_option
def top(*, as_json: bool) -> None:
    """Show live what the keeper holds and does.

    q or Ctrl-C leaves. In a pipe it prints the state once; with --json, too, as `ps --json`. It starts
    nothing, and resets no time-out.

    Example: keepwarm top
    """
    if as_json:
        print_json(read_status())
        return
    work = CpuShares()
    if not sys.stdout.isatty():
        print_once(read_status(), work)
        return
    with Live(console=console(), auto_refresh=False, vertical_overflow="crop") as live, _keys():
        while True:
            live.update(_looked(live.console.width, work), refresh=True)
            if _pressed(EVERY_S) in ("q", "Q", "\x1b"):
                return


def _looked(width: int, work: CpuShares) -> RenderableType:
    """What is so now; a keeper that does not answer is said, and asked again."""
    try:
        return screen(read_status(), width, work)
    except KeeperUnavailable as error:
        return Text(one_line(str(error)))


class CpuShares:
    """The CPU time that each engine's process has used since it was last asked about."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, float]] = {}

    def of(self, pid: int | None) -> str:
        """In per cent of a core; empty at first, and for a process that is not here."""
        state = process_state(pid) if pid is not None else None
        if pid is None or state is None:
            return ""
        now_s, (then_s, cpu_s) = time.monotonic(), self._before.get(pid, (0.0, 0.0))
        self._before[pid] = (now_s, state.cpu_s)
        return f"{(state.cpu_s - cpu_s) / max(now_s - then_s, 1e-3):.0%}" if then_s else ""


def screen(status: Mapping[str, Any], width: int, work: CpuShares) -> RenderableType:
    """The whole picture, for a terminal of so many columns."""
    parts: list[RenderableType] = [Text(line) for line in headline(status)]
    if not status["running"]:
        return Group(*parts)
    parts.append(Text())
    bar = max(8, width // 4)
    devices = Table.grid(padding=(0, 1, 0, 0))
    for device in status["devices"]:
        limit, reserved = max(1, device["limit_bytes"]), device["reserved_bytes"]
        full = ProgressBar(limit, min(reserved, limit), width=bar, complete_style="cyan")
        devices.add_row(
            Text(one_line(device["device"])), full, f"{size(reserved)} of {size(limit)}"
        )
    parts += [devices, Text(), _table(status, width, work)]
    if status["queue"]:
        parts += [
            Text(),
            *(Text(one_line(line), overflow="ellipsis") for line in queue_lines(status)),
        ]
    return Group(*parts)


def _table(status: Mapping[str, Any], width: int, work: CpuShares) -> Table:
    shown = _COLUMNS if width >= _WIDE else _OF_MIDDLE if width >= _MIDDLE else _OF_NARROW
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in shown:
        right = name in _COLUMNS[2:]
        table.add_column(
            name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis"
        )
    for engine in engines_of(status):
        row = row_of(engine, work)
        cells = [Text(one_line(row[name])) for name in shown]
        cells[shown.index("state")].stylize(_STYLES.get(engine["state"], ""))
        table.add_row(*cells)
    return table


def engines_of(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The engines, those that work first."""
    order = {state: number for number, state in enumerate(_ORDER)}
    return sorted(status["engines"], key=lambda e: order.get(e["state"], len(order)))


def row_of(engine: Mapping[str, Any], work: CpuShares) -> dict[str, str]:
    """The cells of an engine by the name of their column."""
    measured = [n for n in (engine["measured"] or {}).values() if n is not None]
    return {
        "model": name_of(engine),
        "state": state_of(engine) + (" (pinned)" if engine["pinned"] else ""),
        "cpu": work.of(engine["pid"]),
        "slots": f"{len(engine['leases'])}/{engine['slots']}",
        "waiting": str(engine["waiting"] or ""),
        "booked": size(sum(engine["bytes"].values())) if engine["bytes"] else "",
        "measured": size(sum(measured)) if measured else "",
        "uses": str(engine["uses"]),
    }


def headline(status: Mapping[str, Any]) -> list[str]:
    """The keeper, its models and the machine, a line each."""
    load = ", ".join(f"{n:.2f}" for n in os.getloadavg())
    machine = f"load {load} on {len(os.sched_getaffinity(0))} cores"
    if not status["running"]:
        return ["No keeper runs, so no model is resident.", machine]
    keeper = status["keeper"]
    loaded = sum(e["state"] in ("idle", "leased") for e in status["engines"])
    waiting = len(status["queue"])
    return [
        f"keeper {keeper['pid']}, up {span(keeper['uptime_s'])}",
        f"{loaded} of {len(status['engines'])} models loaded, {waiting} waiting",
        machine,
    ]


def queue_lines(status: Mapping[str, Any]) -> list[str]:
    """The first requests that wait."""
    queue = status["queue"]
    lines = [
        f"{q['model']} waits {span(q['waited_s'])} for {q['waits_for']}"
        for q in queue[:_QUEUE_SHOWN]
    ]
    more = len(queue) - len(lines)
    return [*lines, *([f"and {more} more"] if more else [])]


def print_once(status: Mapping[str, Any], work: CpuShares) -> None:
    """The same as lines of a pipe."""
    for line in headline(status):
        say(line)
    for device in status["devices"]:
        say(
            f"{device['device']}: {size(device['reserved_bytes'])} of {size(device['limit_bytes'])}"
        )
    if status["engines"]:
        rows = [row_of(engine, work) for engine in engines_of(status)]
        print_table(_COLUMNS, [tuple(row[n] for n in _COLUMNS) for row in rows], right=_COLUMNS[2:])
    for line in queue_lines(status):
        say(line)


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Inside, keys are read as they are pressed, where stdin is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _pressed(within_s: float) -> str:
    """The key that is pressed within a time; empty without one."""
    if not sys.stdin.isatty():
        time.sleep(within_s)
        return ""
    ready, _, _ = select.select([sys.stdin], [], [], within_s)
    if not ready:
        return ""
    key = os.read(sys.stdin.fileno(), 16).decode("utf-8", "replace")
    return key or "q"  # without a key the terminal is gone
