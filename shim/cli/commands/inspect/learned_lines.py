"""The bytes that earlier loads of a file took, as `keepwarm inspect` shows them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from backends.footprint.learned import Learned
from budget.footprint import EngineArgs
from shim.cli.console.output import size
from shim.keeper.catalog.corrections import learned_store


def learned_report(identity: str, args: EngineArgs, build: str) -> dict[str, Any]:
    """Everything learned of a file in this build of llama.cpp, JSON-serialisable.

    `applies` says whether one of the `corrections` is for exactly these arguments; each has
    `differs` (the arguments that are different there), its bytes by device and `learned_on`, the day on
    which an engine was last found to take them.
    """
    rows = [
        {
            "differs": _differing(learned, args),
            "devices": asdict(learned)["devices"],
            "learned_on": learned_on(learned),
        }
        for learned in learned_store().of_file(identity)
        if learned.build == build
    ]
    rows.sort(key=lambda row: len(row["differs"]))
    return {"applies": any(not row["differs"] for row in rows), "corrections": rows}


def learned_on(learned: Learned) -> str | None:
    """The day (UTC) on which an engine was last found to take these bytes."""
    return time.strftime("%Y-%m-%d", time.gmtime(learned.at)) if learned.at else None


def _differing(learned: Learned, args: EngineArgs) -> dict[str, Any]:
    mine = {key: _plain(value) for key, value in asdict(args).items()}
    return {key: value for key, value in learned.args.items() if mine.get(key) != _plain(value)}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def learned_lines(report: dict[str, Any]) -> list[str]:
    """The same as text: a line for each device of each correction."""
    lines: list[str] = []
    for row in report["corrections"]:
        day = f" on {row['learned_on']}" if row["learned_on"] else ""
        with_ = ", ".join(f"{key} {value}" for key, value in row["differs"].items())
        lines.extend(
            f"learned{day}{f' with {with_}' if with_ else ''}: {size(found['corrected_bytes'])} of "
            f"{device} are booked, {size(found['estimated_bytes'])} were estimated"
            for device, found in row["devices"].items()
            if found["corrected_bytes"] != found["estimated_bytes"]
        )
    return lines
