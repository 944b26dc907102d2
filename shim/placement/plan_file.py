"""The placement plan's file: `plan.json` in the state folder, mode 0600, written whole.

Each entry is serialised by itself with sorted keys, so an unchanged entry keeps its bytes. A damaged file
is reported and stays until the next build, because the user asked for it with `keepwarm build`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.foreign.json_shapes import real, table, text, whole
from backends.machine.files.whole_files import BadState, parse_state, set_aside, write_whole
from backends.measure.hardware import difference, hardware, llama_build
from budget.errors import ConfigError, KeepwarmError
from budget.placement.machine_rates import MachineFigures
from shim.paths import state_dir
from shim.placement.plan_entry import Entry

FORMAT: Final = 1
_MOST_SECONDS: Final = 1e6
_FASTEST: Final = 1e15
"""No memory reads a petabyte a second."""


def plan_path() -> Path:
    """The path of the plan's file.

    Raises:
        ConfigError: there is no state folder.
    """
    return state_dir() / "plan.json"


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """A placement plan as the file has it.

    `entries` are the raw JSON values by key; `decisions` are the joint choices at the build, by
    key. `effort` is `quick` or `full`.
    """

    hardware: Mapping[str, Any]
    build: str
    effort: str
    machine: MachineFigures
    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    decisions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def entry(self, key: str) -> Entry | None:
        """A model's entry; None when there is none, or it is damaged."""
        data = self.entries.get(key)
        if data is None:
            return None
        try:
            return Entry.from_json(data)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            return None


def write_plan(plan: PlacementPlan, path: Path | None = None) -> Path:
    """Write a plan over the one before; returns the path of the file.

    Raises:
        ConfigError: the folder cannot be written.
    """
    target = path or plan_path()
    try:
        if (target.is_symlink() or target.exists()) and not target.is_file():
            set_aside(target, "the plan", "it is no file")
        write_whole(target, to_text(plan).encode())
    except OSError as error:
        raise ConfigError(
            f"the plan {target} cannot be written: {error.strerror}.",
            hint="Set XDG_STATE_HOME to a folder of yours.",
            file=str(target),
        ) from error
    return target


def to_text(plan: PlacementPlan) -> str:
    """The file's text: one entry a line, so that a changed entry changes its own line only."""
    head = {
        "format": FORMAT,
        "hardware": dict(plan.hardware),
        "build": plan.build,
        "effort": plan.effort,
        "machine": plan.machine.to_json(),
        "decisions": dict(plan.decisions),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(head[name], sort_keys=True)}" for name in head]
    rows = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in plan.entries.items()]
    return "{\n" + ",\n".join(lines) + ',\n"models": {\n' + ",\n".join(sorted(rows)) + "\n}}\n"


def read_plan(path: Path | None = None) -> PlacementPlan | None:
    """The plan of the file; None when there is no file.

    Raises:
        ConfigError: it cannot be read, or is not a plan of this version. Facts: `file`.
    """
    source = path or plan_path()
    try:
        return parse_state(source, _plan)
    except FileNotFoundError:
        if not source.is_symlink():
            return None
        raise _no_plan("cannot be read", source, f"{source.readlink()} is not there") from None
    except OSError as error:
        raise _no_plan("cannot be read", source, error.strerror) from None
    except BadState as error:
        raise _no_plan("is damaged", source, error) from None


def _no_plan(what: str, source: Path, why: object) -> ConfigError:
    return ConfigError(
        f"the plan {source} {what}: {why}.",
        hint="`keepwarm build` writes it anew.",
        file=str(source),
    )


def _plan(value: object) -> PlacementPlan:
    data = table(value)
    if data["format"] != FORMAT:
        raise ValueError(f"format {str(data['format'])[:40]}, where {FORMAT} is known")
    if data["effort"] not in ("quick", "full"):
        raise ValueError("an effort that is neither quick nor full")
    return PlacementPlan(
        dict(table(data["hardware"])),
        text(data["build"]),
        data["effort"],
        _machine(table(data["machine"])),
        {key: table(row) for key, row in table(data["models"]).items()},
        {key: table(row) for key, row in table(data["decisions"]).items()},
    )


def _machine(data: Mapping[str, Any]) -> MachineFigures:
    for side in table(data["sides"]).values():
        for rate in table(side["bytes_per_s"]).values():
            real(rate, most=_FASTEST)
        for name in ("token_s", "layer_s", "crossing_s"):
            real(side[name], most=_MOST_SECONDS)
    load = table(data["load"])
    real(load["start_s"], most=_MOST_SECONDS)
    for name in ("cold_bytes_per_s", "staged_bytes_per_s"):
        if not [real(rate, 1.0, _FASTEST) for rate in table(load[name]).values()]:
            raise ValueError(f"{name} without a load mode")
    for amount in table(data["context_bytes"]).values():
        whole(amount)
    return MachineFigures.from_json(data)


def refusal(plan: PlacementPlan) -> str | None:
    """Why a plan is not valid here (another machine or another llama.cpp); None when it is valid."""
    other = difference(plan.hardware, hardware())
    if other:
        return f"it was made on other hardware: {other}"
    now = llama_build()
    if plan.build != now:
        return f"it was made with llama.cpp {plan.build}; here is {now}"
    return None


def usable_plan(path: Path | None = None) -> tuple[PlacementPlan | None, str]:
    """The plan and '' if it is valid here, else None and why ('' when there is no plan at all)."""
    try:
        plan = read_plan(path)
    except KeepwarmError as error:
        return None, str(error)
    if plan is None:
        return None, ""
    reason = refusal(plan)
    return (plan, "") if reason is None else (None, f"the plan is not used: {reason}.")
